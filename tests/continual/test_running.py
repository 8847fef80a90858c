"""Whole runs: what they leave, and that what they leave is what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmlora.config import RunConfig
from rmlora.continual import learning, train_continual
from rmlora.continual.matrix import forgetting
from tests import runs
from tests.continual.quick import quick

Configure = Callable[..., RunConfig]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def reloaded_outputs(config: RunConfig, folder: Path) -> np.ndarray:
    """Logits of the held-out examples by transformers and PEFT alone."""
    base = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=6)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    texts = [json.loads(line)["text"] for line in Path(config.data.eval).read_text().splitlines()]
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize(
    ("strategy", "more", "rank"),
    [
        ("sd-lora", {}, 6),
        ("sd-lora", {"ranks": [3, 1]}, 5),
        ("sequential", {}, 2),
        ("joint", {}, 2),
    ],
)
def test_a_run_leaves_what_it_says(
    strategy: str, more: dict[str, Any], rank: int, configure: Configure, tmp_path: Path
) -> None:
    config = configure(continual={"strategy": strategy, **more})
    result = train_continual(config)
    out, stages = tmp_path / "out", 1 if strategy == "joint" else 3
    rows = runs.rows(out)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["last"] == result["best"] == rows[-1]
    assert [row["epoch"] for row in rows] == list(range(1, stages + 1))
    assert rows[-1]["step"] == 18
    assert all((out / name).is_file() for name in ("README.md", "curves.png", "matrix.png", "config.yaml"))
    assert {len(value) for name, value in saved(out).items() if "lora_A" in name} == {rank}
    held = load_file(out / "predictions.safetensors")
    matrix = json.loads((out / "matrix.json").read_text())
    names = sorted(runs.THINGS)
    right = held["correct"].double()
    for number, task in enumerate(matrix["tasks"]):
        inside = torch.isin(held["labels"], torch.tensor([names.index(name) for name in task]))
        assert matrix["accuracy"][-1][number] == pytest.approx(float(right[inside].mean()))
    assert [len(row) for row in matrix["accuracy"]] == ([3] if stages == 1 else [1, 2, 3])
    assert rows[-1]["eval_accuracy"] == pytest.approx(float(right.mean()))
    assert result["forgetting"] == forgetting(matrix["accuracy"])
    np.testing.assert_allclose(reloaded_outputs(config, out), held["logits"].numpy(), atol=1e-5)
    whole = sum(value.numel() for name, value in saved(out).items() if "lora_" in name)
    learning_last = whole if strategy != "sd-lora" else whole * (more.get("ranks") or [2])[-1] // rank + 3
    assert result["parameters"]["inference_adapter"] == whole
    assert result["parameters"]["adapter"] == learning_last


def test_joint_is_an_ordinary_run_bit_for_bit(configure: Configure, tmp_path: Path) -> None:
    from rmlora.train import train

    train_continual(configure(continual={"strategy": "joint"}))
    ordinary = configure(scope="whole", training={"evaluate_every": 2}, output=str(tmp_path / "whole"))
    result = train(ordinary.model_copy(update={"continual": type(ordinary.continual)()}))
    assert runs.equal(saved(tmp_path / "out"), saved(tmp_path / "whole"))
    row = runs.rows(tmp_path / "out")[-1]
    assert row["eval_loss"] == result["last"]["eval_loss"]


Stages = list[tuple[Any, Any, Any]]


def watch_stages(config: RunConfig) -> Stages:
    """Run it, and return of each stage which it is, what it was given, and what it gave."""
    seen: Stages = []
    learn = learning.learn_stage

    def watch(run: Any, stage: Any, before: Any, console: Any) -> Any:
        done = learn(run, stage, before, console)
        seen.append((stage, before, done))
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rmlora.continual.running.learn_stage", watch)
        train_continual(config)
    return seen


@pytest.fixture(scope="module")
def stages(sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Those of a run of SD-LoRA whose optimizer decays weights."""
    output = tmp_path_factory.mktemp("stages") / "out"
    return watch_stages(quick(sources, output, training={"weight_decay": 0.1}))


def test_frozen_directions_do_not_move_and_are_normalised(stages: Stages) -> None:
    for _, before, done in stages[1:]:
        earlier = before.frozen()
        for name, own in done.learnt.factors.items():
            width = len(earlier.factors[name].A)
            assert torch.equal(own.A[:width], earlier.factors[name].A)
            assert torch.equal(own.B[:, :width], earlier.factors[name].B)
            assert own.B[:, :2].norm() == pytest.approx(1.0, abs=1e-6)
            assert own.B[:, width:].any()
        assert len(set(done.learnt.magnitudes)) == len(done.learnt.widths)


def test_rows_of_other_classes_do_not_move(configure: Configure) -> None:
    seen = watch_stages(configure(continual={"strategy": "sequential"}, method="rm-lora"))
    name = next(n for n in seen[0][2].learnt.rest if n.endswith("classifier.modules_to_save.default.weight"))
    (one, _, first), (two, _, second) = seen[:2]
    moved = (first.learnt.rest[name] != second.learnt.rest[name]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == sorted(two.learns[0])
    assert not set(one.learns[0]) & set(two.learns[0])


def test_a_later_task_never_sees_an_earlier_example(stages: Stages) -> None:
    for stage, _, done in stages:
        labels = {row["labels"] for row in done.plan.encoded["train"]}
        assert labels == set(stage.learns[0])
        held_out = {row["labels"] for row in done.plan.encoded["eval"]}
        assert held_out == {c for task in stage.seen for c in task}


def test_dropped_directions_are_not_saved_and_the_rest_says_the_same(configure: Configure, tmp_path: Path) -> None:
    config = configure(continual={"drop_below": 10.0})  # everything is near enough
    result = train_continual(config)
    rows = runs.rows(tmp_path / "out")
    modules = len([name for name in saved(tmp_path / "out") if "lora_A" in name])
    assert [row["dropped"] for row in rows] == [0, modules, modules]
    assert {len(value) for name, value in saved(tmp_path / "out").items() if "lora_A" in name} == {2}
    assert result["parameters"]["inference_adapter"] == sum(
        value.numel() for name, value in saved(tmp_path / "out").items() if "lora_" in name
    )
    held = load_file(tmp_path / "out" / "predictions.safetensors")
    np.testing.assert_allclose(reloaded_outputs(config, tmp_path / "out"), held["logits"].numpy(), atol=1e-5)


@pytest.mark.slow
def test_without_an_adapter_the_whole_model_is_trained_on_and_on(configure: Configure, tmp_path: Path) -> None:
    told = {"method": "full", "continual": {"strategy": "sequential"}, "training": {"lr": 1e-3}}
    seen = watch_stages(configure(**told))
    assert not seen[0][2].learnt.factors
    word = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(seen[0][2].learnt.rest[word], seen[1][2].learnt.rest[word])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(model.state_dict()[word], seen[2][2].plan.model.state_dict()[word])
