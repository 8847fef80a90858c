"""`rmlora train method=bilora`: it makes the batches of two parts by itself, and resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import rmlora
from rmlora import TwoPartBatches
from rmlora.config_source import resolve
from rmlora.errors import ConfigError
from rmlora.heads.settings import complete_head
from rmlora.run.ordered import OrderedTrainer
from rmlora.run.record import RecordEpochs
from rmlora.train import train
from tests import runs


class StopError(Exception):
    """Ctrl-C, but catchable by this test alone."""


def stop_in_second_epoch(self: RecordEpochs, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    if state.global_step == 7:
        raise StopError


def examples_of(rows: Any) -> list[list[int]]:
    """Token ids without padding."""
    return [[token for token in row if token != 0] for row in rows]


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_values_learn_from_the_second_part_alone_and_a_resumed_run_reads_on(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    training = {"epochs": 3, "lr": 1e-2, "batch_size": 4, "gradient_accumulation_steps": accumulation}
    settings = {"method": "bilora", "method_args": {"every": 3, "share": 0.3}, "training": training}
    whole, broken = (resolve(runs.settings(bert, files, tmp_path / name, **settings)) for name in ("a", "b"))
    batches = TwoPartBatches(40, 4, rmlora.bilora(every=3, share=0.3), batches_per_step=accumulation)
    expected = iter([batch for _ in range(3) for batch in batches])
    turns: list[bool] = []
    original = OrderedTrainer.training_step

    def watched(self: OrderedTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batch, (handle,) = next(expected), rmlora.attached(model)
        assert examples_of(inputs["input_ids"].tolist()) == examples_of(
            self.train_dataset[i]["input_ids"] for i in batch
        )
        turns.append(all(rows == [] for rows, _ in handle.kept().values()))
        assert {i in batches.parts[1] for i in batch} == {turns[-1]}
        return original(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(OrderedTrainer, "training_step", watched)
        train(whole)
    assert (len(turns), sum(turns)) == (30, 10)
    with monkeypatch.context() as patch:
        patch.setattr(RecordEpochs, "on_step_end", stop_in_second_epoch, raising=False)
        with pytest.raises(StopError):
            train(broken)
    train(broken, resume=True)
    name = "adapter_model.safetensors"
    assert runs.equal(load_file(tmp_path / "b" / name), load_file(tmp_path / "a" / name))


def test_settings_that_would_put_batches_out_of_step_are_refused(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    settings = {"method": "bilora", "training": {"group_by_length": True}}
    with pytest.raises(ConfigError, match="chooses its batches itself"):
        train(resolve(runs.settings(bert, files, tmp_path / "run", **settings)))
    settings = {"method": "bilora", "scope": "head", "task": "image-classification"}
    with pytest.raises(ConfigError, match="scope=head cannot give method bilora two parts of the training set"):
        complete_head(resolve(runs.settings(bert, files, tmp_path / "run", **settings)))
