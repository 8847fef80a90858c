import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rmlora.config_source import resolve
from rmlora.errors import StateError
from rmlora.run.record import RecordEpochs
from rmlora.train import train
from tests import runs


class StopError(Exception):
    """Ctrl-C, but catchable by this test alone."""


def stop_in_second_epoch(self: RecordEpochs, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    if state.global_step == 7:
        raise StopError


@pytest.mark.parametrize(
    "changes",
    [
        {"method_args": {"directions": 2}, "lora": {"lora_dropout": 0.1}},
        pytest.param(
            {"method_args": {"policy": "state"}, "training": {"group_by_length": True}}, marks=pytest.mark.slow
        ),
        {"method": "lora", "training": {"gradient_accumulation_steps": 2, "num_workers": 1}},
        {"method": "full", "training": {"lr_scheduler": "cosine"}},
        pytest.param({"method": "lora-dropout", "method_args": {"p": 0.3, "instances": 2}}, marks=pytest.mark.slow),
        {"training": {"evaluate_every": 2}},
    ],
    ids=["rm-lora", "state", "accumulation", "full", "instances", "sparing"],
)
def test_transformers_35850_a_resumed_run_equals_one_never_interrupted(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**changes, "training": {"epochs": 3, "lr": 1e-2} | changes.get("training", {})}
    whole, broken = (resolve(runs.settings(bert, files, tmp_path / name, **changes)) for name in ("whole", "broken"))
    train(whole)
    name = "model.safetensors" if whole.method == "full" else "adapter_model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop_in_second_epoch, raising=False)
        with pytest.raises(StopError):
            train(broken)
    evaluations = {"accumulation": 2, "evaluate_every": 0}
    written = next((count for told, count in evaluations.items() if told in str(changes)), 1)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    assert (len(runs.rows(tmp_path / "broken")) if metrics.exists() else 0) == written
    assert not (tmp_path / "broken" / name).exists()
    assert not (tmp_path / "broken" / "result.json").exists()
    train(broken, resume=True)
    assert (tmp_path / "broken" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert runs.equal(load_file(tmp_path / "broken" / name), load_file(tmp_path / "whole" / name))


def test_resume_cuts_metrics_back_to_its_checkpoint(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    config = resolve(runs.settings(bert, files, output))
    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop_in_second_epoch, raising=False)
        with pytest.raises(StopError):
            train(config)
    with (output / "metrics.jsonl").open("a") as file:  # as if killed between the second row and its checkpoint
        file.write(
            json.dumps(runs.rows(output)[0] | {"epoch": 2, "step": 10, "eval_loss": 99.0}) + "\n" + '{"epoch": 3'
        )
    (output / "checkpoints" / "checkpoint-10").mkdir()  # begun, never finished
    train(config, resume=True)
    assert [row["epoch"] for row in runs.rows(output)] == [1, 2]
    assert runs.rows(output)[1]["eval_loss"] < 99


def test_lerobot_3459_resume_on_changed_data_is_refused(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = runs.save_pairs(tmp_path / "data")
    config = resolve(runs.settings(bert, files, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop_in_second_epoch, raising=False)
        with pytest.raises(StopError):
            train(config)
    runs.write_jsonl(files[0], runs.pairs(40, seed=9))
    with pytest.raises(StateError, match=r"train.jsonl\" has changed since the run began"):
        train(config, resume=True)
    runs.save_pairs(tmp_path / "data")
    train(config, resume=True)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [later["step"] for later in environment["resumed"]] == [5]


def test_resume_without_a_checkpoint_begins_and_of_a_finished_run_does_nothing(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    config = resolve(runs.settings(bert, files, tmp_path / "run", training={"epochs": 1}))
    first = train(config, resume=True)
    before = (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(config, resume=True) == first
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("method", ["rm-lora", "full"])
def test_a_run_that_ended_before_its_weights_were_saved_is_finished_by_resuming(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole, broken = (resolve(runs.settings(bert, files, tmp_path / name, method=method)) for name in ("a", "b"))
    expected = train(whole)

    def stop(*_: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("rmlora.train.save_weights", stop)
        with pytest.raises(StopError):
            train(broken)
    found = train(broken, resume=True)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    for file in (name, "predictions.safetensors"):
        assert runs.equal(load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file))
