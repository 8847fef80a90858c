"""What a study shows while it runs: one bar for the whole grid, a line for each cell, and the time that is left."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rmlora.compare.agenda import Agenda
from rmlora.compare.cells import Cell
from rmlora.run.wording import duration, say


class ShowGrid:
    """Draw the bar in a terminal; elsewhere print the lines only.

    Args:
        console: where to show it.
        workers: how many cells are run side by side.
    """

    def __init__(self, console: Console, workers: int) -> None:
        self.console = console
        self.workers = max(1, workers)
        self.told: set[str] | None = None
        self.chosen: set[object] = set()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> ShowGrid:
        if self.console.is_terminal:
            words = (TextColumn("cells"), TimeElapsedColumn(), TextColumn("elapsed{task.fields[left]}"))
            self.bar = Progress(BarColumn(bar_width=None), MofNCompleteColumn(), *words, console=self.console)
            self.task = self.bar.add_task("", total=None, left="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, agenda: Agenda) -> None:
        """Show what is new since the last time."""
        settled = agenda.having("done", "failed", "diverged")
        left = left_seconds(agenda, self.workers)
        text = "" if not left else f"about {duration(left)} left"
        if self.told is None:
            self.told = {cell.id for cell in settled}
            self.chosen = set(agenda.choices)
        total = len(agenda.cells) + agenda.waiting
        for cell in settled:
            if cell.id not in self.told:
                self.told.add(cell.id)
                ending = "" if self.bar is not None or not text else f"  ({text})"
                say(self.console, f"{len(self.told)}/{total}  {cell_line(cell, agenda)}{ending}")
        for group, choice in agenda.choices.items():
            if group not in self.chosen:
                self.chosen.add(group)
                rate = "every rate diverged" if choice.rate is None else f"lr={choice.rate:g} is chosen"
                say(self.console, f"{group.label} r={group.r} on {group.task}: {rate} on the selection split")
        if self.bar is not None:
            self.bar.update(self.task, total=total, completed=len(settled), left=f", {text}" if text else "")


def cell_line(cell: Cell, agenda: Agenda) -> str:
    """Say in one line what came of a settled cell."""
    result = agenda.results.get(cell.id)
    if result is None:
        how = "diverged" if agenda.states[cell.id] == "diverged" else "failed"
        return f"{cell.title}: {how}: {agenda.store.reason(cell)} (log: {agenda.store.log(cell)})"
    metric = result["metric"]
    best, last = (result[which][f"eval_{metric}"] for which in ("best", "last"))
    return f"{cell.title}: {metric} {last:.4f}, best epoch {best:.4f} ({duration(result['seconds'])})"


def left_seconds(agenda: Agenda, workers: int) -> float | None:
    """Estimate the time left from what finished cells took.

    An open cell is expected to take the mean of finished cells of its method, task and model; of its task and model
    where there is none; of all otherwise.

    Returns:
        Seconds; None before any cell is finished.
    """
    seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for cell in agenda.having("done"):
        for key in _keys(cell):
            seconds[key].append(float(agenda.results[cell.id].get("seconds") or 0))
    if not seconds:
        return None
    open_cells = agenda.having("open")
    expected = [mean(next(seconds[key] for key in _keys(cell) if key in seconds)) for cell in open_cells]
    return (sum(expected) + agenda.waiting * mean(seconds[()])) / workers


def _keys(cell: Cell) -> tuple[tuple[str, ...], ...]:
    place = (cell.group.model, cell.group.task)
    return (*place, cell.group.label, cell.kind), (*place, cell.group.label), place, ()
