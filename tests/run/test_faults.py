"""What goes wrong in the middle of a run: it stops at once, in one line, and what was good stays."""

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from rmlora.config import TrainingConfig
from rmlora.config_source import resolve
from rmlora.errors import DivergedError, RmloraError, StateError
from rmlora.run import divergence
from rmlora.run.faults import DiskFullError, MemoryFullError, smaller_batch
from rmlora.run.folder import RunFolder, open_folder
from rmlora.run.lock import held
from rmlora.run.ordered import OrderedTrainer
from rmlora.run.record import RecordEpochs
from rmlora.train import train
from tests import runs

STEP = OrderedTrainer.training_step


def at_step(wanted: int, act: Callable[[Any], None]) -> Callable[..., Any]:
    """A training step before which, at one step, something happens to the trainer."""

    def step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == wanted:
            act(self)
        return STEP(self, model, inputs, *args, **kwargs)

    return step


def fails(error: Exception) -> Callable[[Any], None]:
    def fail(trainer: Any) -> None:
        raise error

    return fail


def named(model: Any, ending: str) -> Any:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(ending))


@torch.no_grad()
def lose_a_weight(trainer: Any) -> None:
    named(trainer.model, "layer.1.attention.self.query.lora_B.default.weight")[0, 0] = float("nan")


@torch.no_grad()
def lose_an_output(trainer: Any) -> None:
    named(trainer.model, "layer.1.output.LayerNorm.bias").fill_(float("inf"))


def lose_a_gradient(trainer: Any) -> None:
    parameter = named(trainer.model, "layer.0.attention.self.value.lora_A.default.weight")
    parameter.register_hook(lambda gradient: gradient / 0)


LOST = {
    "a weight": (lose_a_weight, "loss is nan at step 7 of 10: first the weight of bert.encoder.layer.1.attention.self"),
    "an output": (
        lose_an_output,
        "loss is nan at step 7 of 10: all weights are finite, first the output of bert.encoder.layer.1.output.LayerN",
    ),
    "a gradient": (lose_a_gradient, "the gradient of bert.encoder.layer.0.attention.self.value.lora_A.default.weight"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_lost_number_stops_the_run_at_its_step_and_names_the_module(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    act, message = LOST[what]
    monkeypatch.setattr(OrderedTrainer, "training_step", at_step(7, act))
    with pytest.raises(DivergedError) as stopped:
        train(resolve(runs.settings(bert, files, tmp_path / "run")))
    said = str(stopped.value)
    assert message in said
    assert "step 7 of 10" in said
    assert "\n" not in said
    kept = RunFolder(tmp_path / "run").checkpoint()
    assert kept is not None
    assert kept.name == "checkpoint-5"
    assert f'the last good checkpoint, of step 5, is kept in "{kept}"' in said
    assert all(torch.isfinite(tensor).all() for tensor in runs.weights(kept).values())


def test_a_weight_lost_in_an_epochs_last_step_never_becomes_a_checkpoint(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(self: RecordEpochs, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 10:
            with torch.no_grad():
                named(model, "layer.0.attention.self.key.lora_B.default.weight").fill_(float("inf"))

    monkeypatch.setattr(RecordEpochs, "on_step_end", lose, raising=False)
    told = runs.settings(bert, files, tmp_path / "run", training={"epochs": 3, "evaluate_every": 3})
    with pytest.raises(DivergedError, match=r"after step 10 of 15 the weight of bert.encoder.layer.0.*key.lora_B"):
        train(resolve(told))
    assert RunFolder(tmp_path / "run").checkpoint() == tmp_path / "run" / "checkpoints" / "checkpoint-5"


def test_the_layer_alone_stops_at_its_step_too(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmlora.heads import train_head

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = runs.settings(bert, files, tmp_path / "run", scope="head", training={"lr": 1e30, "max_grad_norm": 0})
    told |= {"method": "r-lora", "method_args": {"weight": 1e-3}, "lora": {"r": 4, "scale": 1}}
    with pytest.raises(DivergedError, match=r"at step [2-9]: .*the gradient of classifier.lora_"):
        train_head(resolve(told))


def test_looking_changes_no_weight(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [
        runs.settings(bert, files, tmp_path / name, training={"epochs": 1}, lora={"lora_dropout": 0.1})
        for name in ("seen", "unseen")
    ]
    train(resolve(told[0]))
    monkeypatch.setattr("rmlora.run.ordered.check_step", lambda *args: None)
    train(resolve(told[1]))
    assert runs.equal(runs.weights(tmp_path / "seen"), runs.weights(tmp_path / "unseen"))


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REFUSED = OSError(errno.EROFS, os.strerror(errno.EROFS), "checkpoints/checkpoint-5/optimizer.pt")
FAULTS = {
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryFullError, "batch_size=8"),
    "main memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryFullError, "batch_size=4 grad"),
    "disk": (FULL, DiskFullError, "the last checkpoint is whole; make room and go on with --resume"),
    "disk, as Rust says it": (SafetensorError("I/O error: No space left on device (os error 28)"), DiskFullError, "go"),
    "read-only": (REFUSED, RmloraError, 'cannot write "checkpoints/checkpoint-5/optimizer.pt": Read-only file system'),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_the_machine_does_is_one_line(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    error, kind, message = FAULTS[what]
    with monkeypatch.context() as patch:
        patch.setattr(OrderedTrainer, "training_step", at_step(3, fails(error)))
        with pytest.raises(kind) as told:
            train(resolve(runs.settings(bert, files, tmp_path / "run")))
    assert message in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run" / ".lock").exists()


def test_memory_that_runs_out_in_evaluation_asks_for_smaller_ones(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(OrderedTrainer, "prediction_step", full)
    with pytest.raises(MemoryFullError, match=r"while evaluating 64 examples at once: .*eval_batch_size=32"):
        train(resolve(runs.settings(bert, files, tmp_path / "run")))


def test_a_smaller_batch_keeps_the_examples_per_step() -> None:
    for size in range(2, 40):
        for steps in (1, 3):
            told = smaller_batch(TrainingConfig(batch_size=size, gradient_accumulation_steps=steps))
            assert told is not None
            assert told[0] * told[1] == size * steps
            assert told[0] <= size // 2
    assert smaller_batch(TrainingConfig(batch_size=1)) is None


def hold(folder: Path, taken: Any) -> None:
    with held(RunFolder(folder)):
        taken.set()
        time.sleep(60)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, bert: Path, files: tuple[Path, Path]
) -> None:
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    first = context.Process(target=hold, args=(tmp_path / "run", taken))
    first.start()
    assert taken.wait(20)
    config = resolve(runs.settings(bert, files, tmp_path / "run", training={"epochs": 1}))
    try:
        with pytest.raises(StateError, match=r"another process is training in .*choose another output"):
            train(config)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        first.kill()
        first.join()
    train(config)
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_run_another_process_finished_meanwhile_is_not_written_over(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(runs.settings(bert, files, tmp_path / "run", training={"epochs": 1}))
    with monkeypatch.context() as patch:
        patch.setattr("rmlora.train.show_header", lambda *args: patch.undo() or train(config))
        with pytest.raises(RmloraError, match="holds a finished run"):
            train(config)
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_clock_that_jumps_back_deletes_no_newer_checkpoint(
    tmp_path: Path, bert: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def jump(self: RecordEpochs, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        later = time.time() + 86400
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            os.utime(checkpoint, (later, later))

    monkeypatch.setattr(RecordEpochs, "on_epoch_begin", jump)
    train(resolve(runs.settings(bert, files, tmp_path / "run")))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-10"]


def test_what_a_killed_process_leaves_is_no_run_and_is_swept_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / ".config.yaml.77.part").write_text("half")
    (tmp_path / ".weights-x").mkdir()
    folder.lock.touch()
    open_folder(folder, None, overwrite=False)
    assert list(tmp_path.iterdir()) == [folder.lock]


def test_the_first_module_to_go_is_named_in_each_direction() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for layer in model:
        layer.weight.grad = torch.full((2, 2), float("nan"))
    assert divergence.first_broken_gradient(model) == "1.weight"
    assert divergence.first_broken_weight(model) is None
    assert divergence.first_broken_output(model, lambda: model(torch.full((1, 2), float("nan")))) == "0"
