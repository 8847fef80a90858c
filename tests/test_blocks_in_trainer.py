"""Blocks under the HF Trainer: checkpoints, resuming, the best checkpoint; layers of other architectures."""

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

import rmlora
from tests import tiny

METHODS = {
    "delta-lora": lambda: rmlora.delta_lora(0.5, start_step=1),
    "rac-lora": lambda: rmlora.rac_lora("right", blocks=3, block_steps=2),
}
FIXED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def train(folder, method, resume=None, **settings):
    torch.manual_seed(0)
    model = tiny.adapted("bert", base=FIXED)
    handle = rmlora.attach(model, METHODS[method]())
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="steps",
        save_steps=1,
        **settings,
    )
    batch = tiny.inputs("bert", size=16)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    assert handle.step == 6
    return model, handle, trainer


@pytest.mark.parametrize("method", METHODS)
def test_resuming_from_a_checkpoint_of_the_trainer_is_bit_exact(method, tmp_path):
    _, straight, _ = train(tmp_path, method)
    for step in (2, 3):
        _, resumed, _ = train(tmp_path / "again", method, resume=str(tmp_path / f"checkpoint-{step}"))
        for name, (A, B) in straight.fold().items():
            assert torch.equal(resumed.fold()[name][0], A)
            assert torch.equal(resumed.fold()[name][1], B)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_checkpoint_comes_back_with_its_blocks(method, tmp_path):
    # The largest loss counts as best, so that the best checkpoint is not the last.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    model, _, trainer = train(tmp_path, method, eval_strategy="steps", eval_steps=1, **best)
    folder = trainer.state.best_model_checkpoint
    assert not folder.endswith("-6")
    torch.manual_seed(0)
    plain = PeftModel.from_pretrained(tiny.TINY["bert"].build(**FIXED), folder).eval()
    batch = tiny.inputs("bert", size=4)
    torch.testing.assert_close(model.eval()(**batch).logits, plain(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", tiny.TINY)
@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_every_architecture_load_in_peft_alone_and_merge(name, method, tmp_path):
    model = tiny.adapted(name)
    rmlora.attach(model, METHODS[method]())
    tiny.train(model, name, tiny.adamw(model), range(5))
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(0)
    plain = PeftModel.from_pretrained(tiny.TINY[name].build(), tmp_path).eval()
    batch = tiny.inputs(name, size=4)
    live = model(**batch).logits
    torch.testing.assert_close(live, plain(**batch).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(**batch).logits, live, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_models_train_to_the_weights_of_eager_ones(method):
    ends = []
    for compiles in (False, True):
        torch._dynamo.reset()
        model = tiny.adapted("bert", base=FIXED | {"problem_type": "single_label_classification"}).train()
        handle = rmlora.attach(model, METHODS[method]())
        called = torch.compile(model, backend="eager") if compiles else model
        optimizer = tiny.adamw(model)
        for step in range(5):
            called(**tiny.inputs("bert", seed=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert handle.step == 5
        ends.append({name: B @ A for name, (A, B) in handle.fold().items()})
    torch._dynamo.reset()
    assert tiny.distance(*ends) <= 1e-6
