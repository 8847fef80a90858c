"""What a search leaves while it runs: a row per round, and what it needs to go on."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

from rich.console import Console

from rmlora.derivative_free.searching import Found
from rmlora.derivative_free.subject import Subject
from rmlora.files import write_text
from rmlora.heads.fitting import task_loss
from rmlora.run.folder import RunFolder
from rmlora.run.record import Row, make_row, measure_adapter, refuse_nan
from rmlora.run.trainer import measure_outputs
from rmlora.run.wording import duration, say


class Recorder:
    """Called after each round of a search.

    Args:
        subject: of the run.
        folder: its rows so far are kept.
        console: where to say what came out.
        known: generations that an interrupted run had finished; they took no time now.
    """

    def __init__(self, subject: Subject, folder: RunFolder, console: Console, known: int) -> None:
        self.subject, self.folder, self.console, self.known = subject, folder, console, known
        self.begun = time.monotonic()
        self.round = 0

    def __call__(self, found: Found) -> None:
        """Keep the losses, and evaluate the best so far if it is time to."""
        self.round += 1
        if len(found.losses) > self.known:
            self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text(self.folder.progress, json.dumps({"losses": found.losses}))
        every = self.subject.plan.config.training.evaluate_every
        if self.round % every == 0:
            self._evaluate(found)

    def finish(self, found: Found) -> list[Row]:
        """Evaluate what was found, if that was not done, leave it in the model, and return all rows."""
        rows = self.folder.rows()
        if not rows or rows[-1]["step"] != found.evaluations:
            self.round = max(self.round, rows[-1]["epoch"] if rows else 0)
            if rows and rows[-1]["epoch"] == self.round:
                self.round += 1  # a round that was cut short
            self._evaluate(found)
        self.subject.write(found.factors)
        return self.folder.rows()

    def _evaluate(self, found: Found) -> None:
        rows = self.folder.rows()
        if any(row["step"] == found.evaluations for row in rows):
            return
        self.subject.write(found.factors)
        row = self._row(found)
        refuse_nan(row)
        self.folder.write_rows([*rows, row])
        say(self.console, self._line(row, found))

    def measure(self) -> Row:
        """Measure the model as it is on every part: losses and metrics."""
        task = self.subject.plan.config.task
        measured: Row = {}
        for part in self.subject.parts:
            if part == "train":
                continue
            name = "train" if part == "seen" else part
            outputs, labels = self.subject.answers(part)
            told = measure_outputs(SimpleNamespace(predictions=outputs.numpy(), label_ids=labels.numpy()), task)
            measured |= {f"{name}_loss": float(task_loss(outputs, labels))}
            measured |= {f"{name}_{metric}": value for metric, value in told.items()}
        return measured

    def _row(self, found: Found) -> Row:
        plan = self.subject.plan
        state = SimpleNamespace(epoch=self.round, global_step=found.evaluations, log_history=[{"loss": found.loss}])
        return make_row(state, self.measure(), plan.metric) | measure_adapter(plan.handle)

    def _line(self, row: Row, found: Found) -> str:
        """Say where the search is, and how long the rest will take."""
        metric, wanted = self.subject.plan.metric, self.subject.plan.config.derivative_free.evaluations
        size = self.subject.plan.config.derivative_free.population
        new = found.evaluations - self.known * size
        left = (time.monotonic() - self.begun) / max(new, 1) * (wanted - found.evaluations)
        return (
            f"round {row['epoch']}: {found.evaluations} of {wanted} candidates, loss {found.loss:.4f} (at the start "
            f"{found.start:.4f}), eval {metric} {row[f'eval_{metric}']:.4f}, {duration(max(left, 0))} left"
        )
