"""What a run shows while it works: a bar with the time left, and one line per epoch."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from rmlora.run.folder import RunFolder
from rmlora.run.wording import duration, say


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Draw a bar in a terminal; elsewhere, print the lines only."""

    def __init__(self, console: Console, folder: RunFolder, metric: str) -> None:
        self.console = console
        self.folder = folder
        self.metric = metric
        self.shown = 0
        self.bar: Progress | None = None
        self.task: Any = None
        self.begun = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar where the run starts, which after a resume is not zero."""
        self.begun, self.first_step = time.monotonic(), state.global_step
        self.shown = len(self.folder.rows())
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            speed_estimate_period=300,
        )
        self.task = self.bar.add_task(self._epoch(args, state), total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            epoch = self._epoch(args, state)
            self.bar.update(self.task, completed=state.global_step, description=epoch)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the line of an epoch once its row is written."""
        rows = self.folder.rows() if state.is_world_process_zero else []
        for row in rows[self.shown :]:
            say(self.console, epoch_line(row, self.metric, round(args.num_train_epochs)) + self._left(state))
        self.shown = max(self.shown, len(rows))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, however the run ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _left(self, state: Any) -> str:
        done = state.global_step - self.first_step
        if self.bar is not None or done == 0 or state.global_step >= state.max_steps:
            return ""
        left = (time.monotonic() - self.begun) / done * (state.max_steps - state.global_step)
        return f"  (about {duration(left)} left)"

    @staticmethod
    def _epoch(args: Any, state: Any) -> str:
        epochs = round(args.num_train_epochs)
        return f"epoch {min(int(state.epoch or 0) + 1, epochs)}/{epochs}"


def epoch_line(row: dict[str, Any], metric: str, epochs: int) -> str:
    """Write one epoch as one line.

    Example:
        >>> row = {"epoch": 1, "running_loss": 0.7, "train_f1": 0.9, "eval_f1": 0.8, "eval_loss": 0.5, "gap": 0.1}
        >>> epoch_line(row | {"effective_rank": 3.21}, "f1", 3)
        'epoch 1/3  loss 0.7000  eval loss 0.5000  f1 0.8000 (train 0.9000, gap +0.1000)  effective rank 3.2'
    """
    gap = "" if row["gap"] is None else f" (train {row[f'train_{metric}']:.4f}, gap {row['gap']:+.4f})"
    rank = f"  effective rank {row['effective_rank']:.1f}" if "effective_rank" in row else ""
    running = "" if row["running_loss"] is None else f"  loss {row['running_loss']:.4f}"
    return (
        f"epoch {row['epoch']}/{epochs}{running}  eval loss {row['eval_loss']:.4f}"
        f"  {metric} {row[f'eval_{metric}']:.4f}{gap}{rank}"
    )
