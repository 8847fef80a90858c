"""Showing a preset: what it would run, and the paper's numbers beside what came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.compare.cells import final_cells, only_rates
from rmlora.compare.study import Study
from rmlora.reproduce.beside import Row, published_of
from rmlora.reproduce.estimate import (
    SIZES,
    Shape,
    Size,
    count_trainable,
    estimate_seconds,
    feature_seconds,
    measure_speed,
    shape_of,
)
from rmlora.reproduce.local import display_name
from rmlora.reproduce.presets import Preset
from rmlora.reproduce.published import SOURCE, Published
from rmlora.reproduce.studies import cells_at_once, studies_of
from rmlora.run.wording import duration, say

OF_UPDATE = ("rank", "effective_rank", "orthogonality_loss", "orthogonality_floor")
"""What is read off dW; the rest is in points."""

NONE = "-"


def show_plan(preset: Preset, output: Path, seeds: int | None, workers: int | None, console: Console) -> None:
    """Print the cells, trained parameters and estimated time of a preset; write nothing.

    Args:
        preset: of the paper, or a local one.
        output: where it would be run.
        seeds: how many instead of the paper's three.
        workers: cells side by side; None as it would be run.
        console: where to print.
    """
    speed = measure_speed()
    table = Table(title=preset.title, title_justify="left", show_edge=False)
    for name in ("model", "task", "method", "r", "runs", "T: trained", "a run"):
        table.add_column(name, justify="left" if name in ("model", "task", "method") else "right", overflow="fold")
    runs, seconds, studies = 0, 0.0, studies_of(preset, output, seeds)
    at_once = max(1, cells_at_once(studies[0], workers))
    for study in studies:
        seconds += _features(study, preset, speed)
        for cells, shape, size in _groups(study, preset):
            first = cells[0]
            r, outputs = first.group.r, size.outputs if size else 2
            trained = count_trainable(shape, outputs, r, study.mode, first.config.method) if shape else None
            full = first.config.method == "full"
            each = (
                estimate_seconds(shape, size, first.config.training.model_dump(), study.mode, speed, full)
                if shape and size
                else 0.0
            )
            runs, seconds = runs + len(cells), seconds + each * len(cells)
            told = "all" if full and study.mode == "whole" else f"{trained:,}" if trained else NONE
            model = display_name(first.group.model)
            table.add_row(
                model, first.group.task, first.group.label, str(r or NONE), str(len(cells)), told, _about(each)
            )
    console.print(table)
    several = "" if at_once == 1 else "s"
    say(console, f"{runs} cells; about {duration(seconds / at_once)} with {at_once} worker{several} on this machine,")
    say(console, f"guessed from {speed / 1e9:.0f} GFLOP/s of matrix products, right to a factor of three or so.")
    for note in preset.notes:
        say(console, f"- {note}")
    say(console, "Dry run: nothing was written.")


def comparison_table(preset: Preset, rows: Sequence[Row]) -> Table:
    """Put what came out beside what the paper printed, last epoch, for a terminal."""
    head, lines = _compared(preset, rows)
    table = Table(title=f"{preset.title}: last epoch, beside {SOURCE}", title_justify="left", show_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in head[:2] else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def to_markdown(preset: Preset, rows: Sequence[Row]) -> str:
    """Write the same table, the notes and the source as Markdown."""
    head, lines = _compared(preset, rows)
    ruler = ["---"] * len(head)
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (head, ruler, *lines))
    notes = "\n".join(f"- {note}" for note in preset.notes)
    seeds = len({row["seed"] for row in rows})
    spread = f"Last epoch, mean and standard deviation over {seeds} seeds; accuracies and the like in points."
    return f"# {preset.title}\n\n{spread} Published: {SOURCE}.\n\n{table}\n\n{notes}\n"


def _compared(preset: Preset, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    arms: dict[tuple[str, str, int | None], list[Row]] = {}
    labels = [method["label"] for study in preset.studies for method in study["methods"]]
    for row in sorted(rows, key=lambda row: (str(row["task"]), row["r"] or 0, labels.index(row["label"]))):
        if row["kind"] == "final":
            arms.setdefault((row["task"], row["label"], row["r"]), []).append(row)
    published = "paper's" if preset.stand_in is None else "paper's, other task"
    lines = []
    for (task, label, r), runs in arms.items():
        for metric, own in _metrics(runs[0], preset):
            found = [value for run in runs if (value := _value(run, metric)) is not None]
            name = metric.replace("_", " ")
            lines.append([task, label, str(r or NONE), name, _spread(found, metric), _number(own, metric)])
    return ["task", "method", "r", "metric", "measured", published], lines


def _metrics(row: Row, preset: Preset) -> Iterator[tuple[str, Published | None]]:
    own = {one.metric: one for one in published_of(row, preset)}
    names: Iterable[str] = dict.fromkeys([row["metric"], *(one.metric for one in preset.published if own)])
    if "orthogonality_loss" in row["last"]:
        names = dict.fromkeys([*names, *OF_UPDATE])
    for name in names:
        if name in own or f"eval_{name}" in row["last"] or name in row["last"]:
            yield name, own.get(name)


def _value(row: Row, metric: str) -> float | None:
    value = row["last"].get(metric if metric in OF_UPDATE else f"eval_{metric}")
    return None if value is None else float(value)


def _spread(values: Sequence[float], metric: str) -> str:
    if not values:
        return NONE
    factor, digits = (1, 1) if metric in OF_UPDATE else (100, 2)
    text = f"{factor * fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {factor * stdev(values):.{digits}f}"


def _number(one: Published | None, metric: str) -> str:
    if one is None:
        return NONE
    return f"{one.value:g}" if metric in OF_UPDATE else f"{100 * one.value:.2f}"


def _groups(study: Study, preset: Preset) -> Iterator[tuple[list[Any], Shape | None, Size | None]]:
    groups: dict[Any, list[Any]] = {}
    for cell in final_cells(study, only_rates(study)):
        groups.setdefault(cell.group, []).append(cell)
    for group, cells in groups.items():
        yield cells, shape_of(group.model), _size(group.task, preset)


def _size(task: str, preset: Preset) -> Size | None:
    local = SIZES.get(f"{task} local") if preset.stand_in else None
    return local or SIZES.get(task)


def _features(study: Study, preset: Preset, speed: float) -> float:
    if study.mode != "head":
        return 0.0
    found = [(shape_of(model), _size(task.name, preset)) for model in study.models for task in study.tasks]
    return sum(feature_seconds(shape, size, speed) for shape, size in found if shape and size)


def _about(seconds: float) -> str:
    return f"~{duration(seconds)}" if seconds else NONE
