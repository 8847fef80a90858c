"""The HF Trainer's evaluation and best checkpoint: evaluating uses no mask, and what is restored trains on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import rmlora
from tests import tiny

NAME, STEPS = "bert", 4
METHOD = rmlora.rm_lora(weight=1e-2, directions=2)


def attach_to_model():
    # Without dropout: starting an evaluation draws from the global generator, with any method or none.
    model = tiny.adapted(NAME, base={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return model, rmlora.attach(model, METHOD)


def make_by_config():
    model = tiny.adapted(NAME, rmlora.RMLoraConfig(**tiny.lora_settings(NAME), weight=1e-2, directions=2))
    return model, rmlora.attached(model)[0]


def train(folder, make, **settings):
    model, handle = make()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    batch = tiny.inputs(NAME, size=16)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert handle.step == STEPS
    return model, handle, trainer


# The largest loss counts as best, so that the best checkpoint is not the last.
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
}


@pytest.mark.parametrize("make", [attach_to_model, make_by_config])
def test_the_best_checkpoint_is_restored_and_trains_on(make, tmp_path):
    model, handle, trainer = train(tmp_path, make, **BEST)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != f"checkpoint-{STEPS}"
    assert json.loads((best / "adapter_config.json").read_text())["peft_type"] == "LORA"
    saved = load_file(best / "adapter_model.safetensors")
    live = {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}
    assert live.keys() <= saved.keys()
    assert all(torch.equal(saved[name], value) for name, value in live.items())

    tiny.train(model, NAME, tiny.adamw(model), range(2))
    assert handle.step == STEPS + 2


def test_evaluating_and_saving_at_every_step_changes_nothing(tmp_path):
    quiet, _, _ = train(tmp_path / "quiet", attach_to_model, save_strategy="no")
    busy = {key: value for key, value in BEST.items() if key != "load_best_model_at_end"}
    watched, _, _ = train(tmp_path / "busy", attach_to_model, **busy)
    assert tiny.distance(tiny.learnt(quiet), tiny.learnt(watched)) == 0.0
