"""Keeping the last epoch's answers to the held-out examples, for whoever compares runs example by example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from rmlora.config import Task
from rmlora.files import write_bytes
from rmlora.run.folder import RunFolder
from rmlora.tasks.calibration import reliability_bins
from rmlora.tasks.predictions import answers


class KeepPredictions(TrainerCallback):  # type: ignore[misc]
    """See every evaluation's answers, and write those of the last one to predictions.safetensors.

    They are written before the epoch's row and its checkpoint, so a resumed run that has nothing left to train has
    them already.
    """

    def __init__(self, folder: RunFolder, task: Task) -> None:
        self.folder = folder
        self.task = task
        self.latest: tuple[Any, Any] | None = None

    def watch(self, measure: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
        """Return `measure`, remembering the answers it is given until the next."""

        def watched(output: Any) -> dict[str, float]:
            self.latest = (output.predictions, output.label_ids)
            return measure(output)

        return watched

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        """Write the held-out part's answers once the last epoch is evaluated."""
        is_last = round(state.epoch) >= args.num_train_epochs
        if self.latest is None or "eval_eval_loss" not in metrics or not (is_last and state.is_world_process_zero):
            return
        self.write()

    def write(self) -> None:
        """Write what was remembered."""
        from safetensors.numpy import save

        assert self.latest is not None
        write_bytes(self.folder.predictions, save(answers(*self.latest, self.task)))


def kept_reliability(folder: RunFolder) -> dict[str, Any]:
    """Sort the last epoch's held-out answers into the bins of a reliability diagram.

    Args:
        folder: of a run whose predictions are written.

    Returns:
        `reliability`, the bins; nothing where the task has no classes.
    """
    from safetensors.numpy import load_file

    found = load_file(folder.predictions) if folder.predictions.is_file() else {}
    if "logits" not in found:
        return {}
    return {"reliability": reliability_bins(found["logits"], found["labels"])}
