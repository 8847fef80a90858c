import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rmlora.config import RunConfig
from rmlora.errors import ConfigError, MethodError
from rmlora.heads import train_head
from rmlora.heads.features import load_features
from rmlora.tasks.data import load_data
from tests import runs

Configure = Callable[..., RunConfig]
KNOBS = {"gm-lora": {"directions": 1}, "r-lora": {"weight": 1e-2}, "rm-lora": {"weight": 1e-2, "directions": 1}}
METHODS = ("full", "lora", "gm-lora", "r-lora", "rm-lora", "sora")


def head_weight(folder: Path) -> torch.Tensor:
    return load_file(folder / "head.safetensors")["weight"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_rows_result_predictions_and_layer(method: str, configure: Configure, tmp_path: Path) -> None:
    config = configure(method=method, method_args=KNOBS.get(method, {}))
    result = train_head(config, tmp_path)
    rows = runs.rows(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [row["epoch"] for row in rows] == [1, 2]
    assert result["last"] == rows[-1]
    assert result["steps"] == 10
    assert result["examples"] == {"train": 40, "eval": 16}
    for name in ("train_loss", "eval_loss", "train_accuracy", "eval_accuracy", "gap", "effective_rank", "rank"):
        assert name in rows[-1], name
    assert ("penalty" in rows[-1]) == (method != "full")
    predictions = load_file(tmp_path / "predictions.safetensors")
    labels = load_data(config.data, config.task).eval.labels
    assert predictions["labels"].tolist() == labels
    assert (predictions["logits"].argmax(-1) == predictions["labels"]).tolist() == predictions["correct"].tolist()
    assert float(predictions["correct"].double().mean()) == rows[-1]["eval_accuracy"]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_saved_layer_on_the_backbones_own_features_gives_the_predictions(
    kind: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(kind, head={"standardise": True, "frozen": "random"})
    train_head(config, tmp_path)
    raw = load_features(configure(kind), load_data(config.data, config.task)).eval
    layer = load_file(tmp_path / "head.safetensors")
    logits = load_file(tmp_path / "predictions.safetensors")["logits"]
    torch.testing.assert_close(raw @ layer["weight"].T + layer["bias"], logits, atol=1e-4, rtol=0)


def test_rank_and_orthogonality_are_those_of_the_difference_to_the_start(configure: Configure, tmp_path: Path) -> None:
    for method in ("lora", "full"):
        config = configure("image", method=method)  # W0 is zero: the saved weight is dW
        row = train_head(config, tmp_path / method)["last"]
        dW = head_weight(tmp_path / method).double()
        sigma = torch.linalg.svdvals(dW)
        loss = float((dW @ dW.T - torch.eye(3)).square().sum())
        shares = sigma[sigma > 1e-12] / sigma.sum()
        assert row["orthogonality_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["orthogonality_floor"] == (1 if method == "lora" else 0)
        assert row["effective_rank"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)
        assert row["rank"] == int((sigma > row["rank_tolerance"] * sigma[0]).sum())


def test_the_same_seed_gives_the_same_run_and_another_another(configure: Configure, tmp_path: Path) -> None:
    runs_of = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = configure(method="rm-lora", method_args=KNOBS["rm-lora"], training={"seed": seed})
        train_head(config, tmp_path / name)
        runs_of[name] = (tmp_path / name / "metrics.jsonl").read_text()
    assert runs_of["a"] == runs_of["b"] != runs_of["c"]
    assert torch.equal(head_weight(tmp_path / "a"), head_weight(tmp_path / "b"))


def test_the_global_generator_is_left_as_it_was(configure: Configure, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_head(configure(head={"frozen": "random"}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_result_does_not_depend_on_the_number_of_threads(configure: Configure, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    load_features(configure(), load_data(configure().data, configure().task))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train_head(configure(), tmp_path / str(threads))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "1" / "metrics.jsonl").read_text() == (tmp_path / "2" / "metrics.jsonl").read_text()


def test_a_regression_trains_and_predicts_values(configure: Configure, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{**row, "label": float(rng.normal())} for row in runs.pairs(24)]
    file = runs.write_jsonl(tmp_path / "numbers.jsonl", rows)
    data = {"train": str(file), "eval": str(file)}
    result = train_head(configure(task="text-regression", data=data), tmp_path / "out")
    predictions = load_file(tmp_path / "out" / "predictions.safetensors")
    assert sorted(predictions) == ["labels", "values"]
    assert result["metric"] == "pearson"
    assert result["majority"] is None


def test_parameters_are_counted_by_role(configure: Configure, tmp_path: Path) -> None:
    counts = {m: train_head(configure(method=m), tmp_path / m)["parameters"] for m in ("lora", "full", "sora")}
    assert counts["sora"]["adapter"] == counts["lora"]["adapter"] + 2
    assert counts["lora"]["adapter"] == 2 * (32 + 2)
    assert counts["lora"]["trainable"] == counts["lora"]["inference"] == 2 * (32 + 2) + 2
    assert counts["full"]["base"] == 64
    assert counts["full"]["trainable"] == 66
    assert counts["lora"]["frozen"] - counts["full"]["frozen"] == 64


def test_inspect_reads_the_adapter_and_finds_the_recorded_ranks(configure: Configure, tmp_path: Path) -> None:
    from rmlora.analysis.adapters import inspect_adapter

    result = train_head(configure("image"), tmp_path)
    (module,) = inspect_adapter(tmp_path).modules
    assert module.name.endswith("classifier")
    assert list(module.singular_values) == pytest.approx(result["spectra"]["classifier"], rel=1e-4)
    assert sorted(result["files"]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "frozen.safetensors",
        "head.safetensors",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "whole"}, "only scope=head"),
        ({"method": "adalora"}, "method adalora has none"),
        ({"task": "question-answering"}, "needs a task with one label per example"),
        ({"init_adapter": "somewhere"}, "init_adapter=somewhere"),
        ({"lora": {"use_dora": True}}, "lora.use_dora=True"),
        ({"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights=pissa"),
        ({"training": {"precision": "bf16"}}, "precision=bf16"),
        ({"training": {"optimizer": "sgd"}}, "optimizer=sgd"),
        ({"training": {"save": "best"}}, "save=best"),
        ({"training": {"gradient_accumulation_steps": 2}}, "gradient_accumulation_steps=2"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    changes: dict, message: str, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_head(configure(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_directions_leave_nothing_behind(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="directions"):
        train_head(configure(method="gm-lora", method_args={"directions": 3}), tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_the_whole_model_run_sends_head_runs_elsewhere(configure: Configure, tmp_path: Path) -> None:
    from rmlora.train import train

    with pytest.raises(ConfigError, match=r"call rmlora\.scopes\.run"):
        train(configure(output=str(tmp_path / "out")))
