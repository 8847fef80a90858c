"""Runs of mixtures: what they leave, that they predict again, that they go on where they stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from rmlora.config import RunConfig
from rmlora.errors import ConfigError, RmloraError, StateError
from rmlora.experts import load_mixture, open_experts
from rmlora.mixture import train_mixture
from rmlora.mixture.selection import HoldOut
from rmlora.replay import replay
from rmlora.run.predict_run import Wanted, predict_run
from rmlora.run.record import RecordEpochs
from rmlora.run.sources import Sources
from rmlora.scopes import run
from tests import runs
from tests.mixture.mixtures import LEARNT, config

Files = tuple[Path, Path]


class StopError(Exception):
    """Ctrl-C, but catchable by this test alone."""


SLOW_BEST = pytest.param("best", marks=pytest.mark.slow)


@pytest.mark.parametrize("combine", ["gates", "linear", SLOW_BEST])
def test_a_run_leaves_what_it_says_and_predicts_again(
    combine: str, tmp_path: Path, bert: Path, files: Files, experts: list[str]
) -> None:
    output = tmp_path / "run"
    result = run(config(bert, files, output, experts, combine))
    assert result == json.loads((output / "result.json").read_text())
    assert [row["epoch"] for row in runs.rows(output)] == [1, 2]
    assert {"config.yaml", "environment.json", "README.md", "curves.png", LEARNT[combine]} <= {
        path.name for path in output.iterdir()
    }
    assert set(result["files"]) <= {path.name for path in output.iterdir()}
    environment = json.loads((output / "environment.json").read_text())
    assert [e["sha256"] for e in environment["experts"].values()] == [e.sha256 for e in open_experts(experts)]
    found = predict_run(output, Wanted())
    assert found["accuracy"] == result["last"]["eval_accuracy"]
    assert found["brier"] == pytest.approx(result["last"]["eval_brier"], abs=1e-6)
    kept = load_arrays(output / "predictions.safetensors")
    told = [json.loads(line) for line in (output / "predicted.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in told] == [str(label) for label in kept["logits"].argmax(-1)]
    parameters = result["parameters"]
    assert parameters["trainable"] == parameters["adapter"] + parameters["head"]
    assert parameters["adapter"] == (2 * (2 * 32 * 2 + 1) if combine == "gates" else 0)


def test_gates_are_recorded_and_sum_to_one(tmp_path: Path, bert: Path, files: Files, experts: list[str]) -> None:
    result = run(config(bert, files, tmp_path / "run", experts, mixture={"temperature": 0.5, "balance": 0}))
    for row in runs.rows(tmp_path / "run"):
        assert row["gate_same"] + row["gate_half"] == pytest.approx(1, abs=1e-5)
        assert np.array(row["gates"]).shape == (2, 2)
        assert np.mean(row["gates"], axis=0) == pytest.approx([row["gate_same"], row["gate_half"]], abs=1e-5)
        assert row["temperature"] != 0.5
    assert result["last"]["gate_same"] != 0.5
    card = (tmp_path / "run" / "README.md").read_text()
    assert "does not merge" in card
    assert open_experts(experts)[0].sha256 in card


def test_the_best_expert_is_the_one_that_does_best_on_a_part_of_train(
    tmp_path: Path, bert: Path, files: Files, experts: list[str]
) -> None:
    result = run(config(bert, files, tmp_path / "run", experts, "best", data={"train_examples": 30}))
    told = result["mixture"]
    assert told["selection"].keys() == {"same", "half"}
    assert told["chosen"] == max(told["selection"], key=lambda name: told["selection"][name])
    assert result["last"]["expert"] == told["chosen"]
    own = load_file(Path(experts[0]).with_name(told["chosen"]) / "adapter_model.safetensors")
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
    found = runs.weights(tmp_path / "run")
    delta = found[key.format("B")] @ found[key.format("A")]  # scale 1: it is in the factors
    assert torch.allclose(delta, 2 * own[key.format("B")] @ own[key.format("A")], atol=1e-6)


def test_the_held_out_part_takes_no_part_in_choosing(bert: Path, files: Files, experts: list[str]) -> None:
    told = config(bert, files, Path("nowhere"), experts, "best")
    whole, parted = Sources().data(told), HoldOut(Sources(), 0.25).data(told)
    sentences = [list(zip(*part.inputs, strict=True)) for part in (parted.train, parted.eval, whole.train)]
    assert (len(parted.train), len(parted.eval)) == (30, 10)
    assert sorted(sentences[0] + sentences[1]) == sorted(sentences[2])
    assert whole.eval.labels != parted.eval.labels
    other = told.model_copy(update={"training": told.training.model_copy(update={"seed": 5})})
    assert HoldOut(Sources(), 0.25).data(other).eval.inputs != parted.eval.inputs


def interrupt(monkeypatch: pytest.MonkeyPatch, told: RunConfig, where: str, step: int) -> None:
    """Stop at a step of the first or second expert's trial, or of the run's own training."""
    noted = Path(str(told.output)) / "checkpoints" / "progress.json"

    def stop(self: RecordEpochs, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trial = "second" if noted.is_file() else "first"
        here = trial if "selection" in Path(args.output_dir).parts else "training"
        if (here, state.global_step) == (where, step):
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop, raising=False)
        with pytest.raises(StopError):
            train_mixture(told)


@pytest.mark.parametrize(
    ("combine", "where"),
    [
        ("gates", "training"),
        pytest.param("best", "second", marks=pytest.mark.slow),
        pytest.param("linear", "training", marks=pytest.mark.slow),
        pytest.param("best", "training", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_one_never_interrupted(
    combine: str, where: str, tmp_path: Path, bert: Path, files: Files, experts: list[str], monkeypatch: Any
) -> None:
    whole, broken = (config(bert, files, tmp_path / name, experts, combine) for name in ("whole", "broken"))
    expected = train_mixture(whole)
    interrupt(monkeypatch, broken, where, 7)
    assert not (tmp_path / "broken" / "result.json").exists()
    found = train_mixture(broken, resume=True)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    for name in ("metrics.jsonl", "predictions.safetensors", LEARNT[combine]):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert train_mixture(broken, resume=True) == found


@pytest.mark.slow
def test_scores_of_experts_are_not_measured_twice(
    tmp_path: Path, bert: Path, files: Files, experts: list[str], monkeypatch: Any
) -> None:
    told = config(bert, files, tmp_path / "run", experts, "best", training={"epochs": 1})
    interrupt(monkeypatch, told, "second", 3)
    noted = tmp_path / "run" / "checkpoints" / "progress.json"
    scores = json.loads(noted.read_text())["selection"]
    noted.write_text(json.dumps({"selection": scores | {"half": 2.0}}))
    result = train_mixture(told, resume=True)
    assert (result["mixture"]["chosen"], result["mixture"]["selection"]["same"]) == ("half", scores["same"])


def test_an_expert_that_changed_stops_resuming_and_predicting(
    tmp_path: Path, bert: Path, files: Files, experts: list[str], monkeypatch: Any
) -> None:
    copies = [str(shutil.copytree(path, tmp_path / Path(path).name)) for path in experts]
    told = config(bert, files, tmp_path / "run", copies)
    interrupt(monkeypatch, told, "training", 7)
    shutil.copyfile(Path(experts[0]) / "adapter_model.safetensors", tmp_path / "half" / "adapter_model.safetensors")
    shutil.copyfile(Path(experts[0]) / "adapter_config.json", tmp_path / "half" / "adapter_config.json")
    with pytest.raises(StateError, match=r'--resume: expert "half" at .* has changed since the run began'):
        train_mixture(told, resume=True)
    train_mixture(told, overwrite=True)
    shutil.rmtree(tmp_path / "half")
    with pytest.raises(RmloraError, match=r'expert "half" is not at'):
        predict_run(tmp_path / "run", Wanted())


@pytest.mark.slow
def test_a_replay_is_bit_equal_or_says_that_an_expert_has_changed(
    tmp_path: Path, bert: Path, files: Files, experts: list[str]
) -> None:
    copies = [str(shutil.copytree(path, tmp_path / Path(path).name)) for path in experts]
    run(config(bert, files, tmp_path / "run", copies, training={"epochs": 1}))
    found = replay(tmp_path / "run")
    assert {f.file for f in found} == {"gates.safetensors", "metrics.jsonl", "predictions.safetensors"}
    assert not [f for f in found if f.difference]
    shutil.copyfile(Path(experts[0]) / "adapter_model.safetensors", tmp_path / "half" / "adapter_model.safetensors")
    with pytest.raises(StateError, match='expert "half" has changed since the run read it'):
        replay(tmp_path / "run")


def test_a_run_is_loaded_by_the_public_function(tmp_path: Path, bert: Path, files: Files, experts: list[str]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run(config(bert, files, tmp_path / "run", experts, training={"epochs": 1}))
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    mixture = load_mixture(base, tmp_path / "run", experts={"same": experts[0]})
    rows = runs.pairs(16, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    texts = [[row[f"sentence{i}"] for row in rows] for i in (1, 2)]
    with torch.no_grad():
        found = mixture(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    kept = load_arrays(tmp_path / "run" / "predictions.safetensors")["logits"]
    assert np.abs(found.numpy() - kept).max() < 1e-5


def test_a_mixture_is_no_adapter_to_other_commands(
    tmp_path: Path, bert: Path, files: Files, experts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    run(config(bert, files, output, experts, training={"epochs": 1}))
    for words in (("inspect", output), ("verify", output)):
        assert runs.call(*words) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert "mixture" in told
    with pytest.raises(ConfigError, match="draws none"):
        predict_run(output, Wanted(ensemble=2))
