"""Metrics, tokens, scales, types, files and costs: each broken on purpose, named after the thread where one fits."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmlora.config_source import resolve
from rmlora.doctor import reloaded, trial
from rmlora.doctor.checks.data import lengths_fit, metric_exists, padding_is_inert, tokens_differ
from rmlora.doctor.checks.forecast import forecast
from rmlora.doctor.checks.saving import merge_is_equal, reload_is_equal
from rmlora.doctor.checks.settings import dtypes_are_safe, scale_is_sane
from rmlora.doctor.checks.steps import steps_run
from rmlora.doctor.subject import Cost, Saved, Subject
from rmlora.run.choice import complete
from rmlora.run.plan import make_plan
from rmlora.tasks.completions import IGNORED
from tests import runs
from tests.doctor.cases import Ward, after_planning, troubles


def test_peft_1120_evaluation_without_a_loss(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    after_planning(monkeypatch, lambda plan: setattr(plan.arguments, "label_names", ["answers"]))
    found = ward.visit()["metric"]
    assert found.verdict == "problem"
    assert "evaluation gives no loss" in found.seen


def test_an_evaluation_that_stops_or_gives_no_number(healthy: Subject) -> None:
    assert "stopped with KeyError" in metric_exists(replace(healthy, evaluated="KeyError: 'labels'")).seen
    nan = metric_exists(replace(healthy, evaluated={"eval_eval_loss": float("nan"), "eval_eval_accuracy": 0.5}))
    assert nan.verdict == "problem"
    assert "loss is not a number" in nan.seen


def test_llama_factory_7943_one_token_for_padding_and_end(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = ward.subject("gpt2", task="causal-lm")
    found = tokens_differ(subject)
    assert found.verdict == "warning"
    assert "padding and end are one token (2)" in found.seen

    def by_id(task: Any, tokenizer: Any) -> Any:
        """Leave padding out by its id, as collators for language models do."""
        inner = pad(task, tokenizer)

        def padded(rows: Any) -> Any:
            batch = inner(rows)
            labels = batch["labels"].masked_fill(batch["input_ids"] == tokenizer.pad_token_id, IGNORED)
            return {**batch, "labels": labels}

        return padded

    from rmlora.run import trainer

    pad = trainer.collate
    monkeypatch.setattr(trainer, "collate", by_id)
    found = tokens_differ(subject)
    assert found.verdict == "problem"
    assert "40 training examples do not end in a learnt end token" in found.seen


def test_padding_and_end_that_differ_and_tokenizers_without_padding(ward: Ward) -> None:
    subject = ward.subject("llama", task="causal-lm")
    subject.plan.processor.pad_token = "[UNK]"
    assert tokens_differ(subject).verdict == "warning", "the model's configuration still says another"
    subject.plan.model.config.pad_token_id = 0
    assert tokens_differ(subject).verdict == "ok"
    subject.plan.processor.pad_token = None
    assert tokens_differ(subject).verdict == "problem"


def test_padding_that_a_model_reads(ward: Ward, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    rows = [{"sentence": "the cat is red " * (1 + i % 3), "label": i % 2} for i in range(16)]
    file = str(runs.write_jsonl(tmp_path / "texts.jsonl", rows))
    data = {"train": file, "eval": file}
    assert ward.visit("llama", data=data, method="lora")["padding"].verdict == "ok"
    # Classifiers on language models read the last token before the padding, which they know by its id.
    after_planning(monkeypatch, lambda plan: setattr(plan.model.config, "pad_token_id", 0))
    found = ward.visit("llama", data=data, method="lora")
    assert troubles(found) == {"tokens": "warning", "padding": "problem", "reload": "problem"}
    assert "pad_token_id" in found["padding"].remedy


def test_roberta_has_fewer_positions_than_rows(healthy: Subject) -> None:
    assert lengths_fit(healthy).verdict == "ok"
    assert "numbers no positions" in lengths_fit(healthy).seen, "DeBERTa's are relative"
    table = torch.nn.Embedding(10, 2, padding_idx=1)
    model = torch.nn.ModuleDict({"position_embeddings": table})
    plan: Any = SimpleNamespace(config=healthy.plan.config, model=model, encoded={"train": [{"input_ids": [0] * 9}]})
    assert lengths_fit(replace(healthy, plan=plan)).values == {"longest": 9, "room": 8}


@pytest.mark.parametrize(
    ("lora", "verdict", "scale"),
    [
        ({"r": 8, "lora_alpha": 1024}, "problem", 128),
        ({"r": 16, "lora_alpha": 2}, "warning", 0.125),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True}, "warning", 8),
        ({"r": 4, "scale": 1}, "ok", 1),
    ],
    ids=["huge", "lerobot_3551", "sglang_40835", "usual"],
)
def test_scales(lora: dict[str, Any], verdict: str, scale: float, ward: Ward) -> None:
    found = scale_is_sane(Subject(make_plan(complete(resolve(ward.settings(lora=lora))))))
    assert found.verdict == verdict
    assert found.values["most"] == scale
    assert found.remedy == "" if verdict == "ok" else "lora." in found.remedy


@pytest.mark.parametrize(
    ("dtype", "verdict", "part"),
    [("float16", "problem", "lora_"), ("bfloat16", "warning", "lora_"), ("bfloat16", "warning", "encoder")],
)
def test_dtypes(dtype: str, verdict: str, part: str, healthy: Subject) -> None:
    assert dtypes_are_safe(healthy).verdict == "ok"
    model = copy.deepcopy(healthy.plan.model)
    for name, parameter in model.named_parameters():
        if part in name and (part == "lora_") == ("lora_" in name):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    found = dtypes_are_safe(replace(healthy, plan=replace(healthy.plan, model=model)))
    assert found.verdict == verdict
    assert dtype in found.seen + found.remedy


def test_peft_1388_a_checkpoint_in_bfloat16_loses_small_updates_when_merged(healthy: Subject) -> None:
    model = copy.deepcopy(healthy.plan.model)
    model.config.dtype = torch.bfloat16
    found = dtypes_are_safe(replace(healthy, plan=replace(healthy.plan, model=model)))
    assert found.verdict == "warning"
    assert "merging into bfloat16" in found.remedy
    assert merge_is_equal(replace(healthy, saved=Saved(merge_gap=0.1))).verdict == "warning"


def test_a_new_pooler_that_is_trained_and_not_saved(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmlora import adapting

    build = adapting.lora_config

    def without_pooler(*args: Any) -> Any:
        config = build(*args)
        config.modules_to_save = None
        return config

    def train_pooler(plan: Any) -> None:
        for parameter in plan.model.base_model.model.pooler.parameters():
            parameter.requires_grad_(True)

    monkeypatch.setattr(adapting, "lora_config", without_pooler)
    after_planning(monkeypatch, train_pooler)
    found = ward.visit("deberta")
    assert troubles(found) == {"heads saved": "problem", "reload": "problem"}
    assert found["heads saved"].values["lacking"] == (
        "base_model.model.pooler.dense.weight",
        "base_model.model.pooler.dense.bias",
    )
    assert found["reload"].values["gap"] > 0.01


def test_peft_1402_an_adapter_saved_as_zeros(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    save = reloaded.save_weights

    def emptied(plan: Any, initial: Any, folder: Any) -> Any:
        files = save(plan, initial, folder)
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({k: v * 0 if "lora_B" in k else v for k, v in weights.items()}, folder / "adapter_model.safetensors")
        return files

    monkeypatch.setattr(reloaded, "save_weights", emptied)
    found = ward.visit()["reload"]
    assert found.verdict == "problem"
    assert "zero in 12 modules" in found.seen


def test_outputs_that_differ_and_files_that_do_not_load(healthy: Subject) -> None:
    assert reload_is_equal(replace(healthy, saved=Saved(gap=1e-3))).verdict == "problem"
    assert reload_is_equal(replace(healthy, saved=Saved(gap=float("nan")))).verdict == "problem"
    found = reload_is_equal(replace(healthy, saved=Saved(failure="KeyError: 'x'")))
    assert found.verdict == "problem"
    assert "KeyError" in found.seen


def test_a_forecast_is_steps_and_evaluations(healthy: Subject) -> None:
    cost = Cost((9.0, 1.0, 3.0), 0.5, 2**30, None, "cpu")
    found = forecast(replace(healthy, cost=cost))
    assert found.verdict == "ok"
    assert found.values["seconds"] == 10 * 2.0 + 2 * (16 + 8) * 0.5
    assert "an estimate from 3 steps" in found.seen
    assert "peak 1.0 GiB of the process" in found.seen
    full = forecast(replace(healthy, cost=replace(cost, total_bytes=2**30 + 1, device="cuda:0")))
    assert full.verdict == "warning"


def test_peak_and_times_are_measured(healthy: Subject) -> None:
    assert healthy.cost is not None
    assert len(healthy.cost.step_seconds) == trial.NUM_STEPS
    assert all(seconds > 0 for seconds in healthy.cost.step_seconds)
    assert healthy.cost.peak_bytes is None or healthy.cost.peak_bytes > 2**20


def test_steps_a_scaler_left_out_and_memory_that_ran_out(healthy: Subject) -> None:
    left_out = replace(healthy.steps[0], taken=False)
    found = steps_run(replace(healthy, steps=(left_out, *healthy.steps[1:])))
    assert found.verdict == "warning"
    assert "left 1 out" in found.seen
    failed = replace(healthy, failure="OutOfMemoryError: CUDA out of memory. Tried ...", steps=())
    assert "training.batch_size" in steps_run(failed).remedy


def test_padding_gap_is_judged(healthy: Subject) -> None:
    assert padding_is_inert(healthy).verdict == "skipped"
    assert padding_is_inert(replace(healthy, padding_gap=1e-6)).verdict == "ok"
    assert padding_is_inert(replace(healthy, padding_gap=float("inf"))).verdict == "problem"
