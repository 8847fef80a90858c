"""Pictures of a continual run: the accuracy matrix, and what becomes of averages as tasks are added."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.continual.matrix import Matrix
from rmlora.files import write_bytes
from rmlora.run.record import Row

_WRITTEN = 15
"""Most tasks whose accuracies are written into the map."""


def plot_matrix(path: Path, matrix: Matrix, title: str) -> None:
    """Draw the accuracy matrix as a heat map: a row for each stage, a column for each task.

    Args:
        path: of the PNG; written whole.
        matrix: row t has an accuracy for each task seen by then.
        title: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(matrix[-1])
    values = np.full((len(matrix), columns), np.nan)
    for t, row in enumerate(matrix):
        values[t, : len(row)] = row
    figure = Figure(figsize=(2.5 + 0.6 * columns, 2.2 + 0.5 * len(matrix)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    for (t, i), value in np.ndenumerate(values) if columns <= _WRITTEN else ():
        if not np.isnan(value):
            color = "black" if value > 0.6 else "white"
            axes.text(i, t, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(columns), [str(i + 1) for i in range(columns)])
    axes.set_yticks(range(len(matrix)), [str(t + 1) for t in range(len(matrix))])
    axes.set_xlabel("accuracy on task (%)")
    axes.set_ylabel("after learning" if len(matrix) == 1 else "after learning task")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes)
    _write(path, figure, FigureCanvasAgg)


def plot_stages(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw averages and forgetting over stages, and the magnitudes of sd-lora.

    Args:
        path: of the PNG; written whole.
        rows: of metrics.jsonl, at least one.
        title: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_magnitudes = "magnitudes" in rows[-1]
    figure = Figure(figsize=(12 if has_magnitudes else 8, 4), layout="constrained")
    axes = figure.subplots(1, 3 if has_magnitudes else 2)
    stages = [row["epoch"] for row in rows]
    axes[0].plot(stages, [row["average_accuracy"] for row in rows], marker="o", label="average over tasks seen")
    axes[0].plot(stages, [row["task_accuracy"][-1] for row in rows], marker="o", label="the newest task")
    axes[0].set_title("accuracy among all classes seen", fontsize=10)
    axes[0].set_ylim(0, 1.02)
    axes[0].legend()
    known = [(row["epoch"], row["forgetting"]) for row in rows if row["forgetting"] is not None]
    if known:
        axes[1].plot(*zip(*known, strict=True), marker="o", color="#d95f02")
    else:
        axes[1].text(0.5, 0.5, "one stage: nothing to forget", ha="center", transform=axes[1].transAxes)
    axes[1].set_title("forgetting: best earlier accuracy minus the last", fontsize=10)
    if has_magnitudes:
        _draw_magnitudes(axes[2], rows)
    for axis in axes:
        axis.set_xlabel("tasks learned")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    _write(path, figure, FigureCanvasAgg)


def _draw_magnitudes(axis: Any, rows: Sequence[Row]) -> None:
    for k in range(len(rows[-1]["magnitudes"])):
        known = [(row["epoch"], row["magnitudes"][k]) for row in rows if len(row["magnitudes"]) > k]
        axis.plot(*zip(*known, strict=True), marker=".", label=f"task {k + 1}" if k < 5 else None)
    axis.set_title("magnitudes at the end of each task", fontsize=10)
    axis.legend()


def _write(path: Path, figure: Any, canvas: Any) -> None:
    buffer = io.BytesIO()
    canvas(figure).print_png(buffer)
    write_bytes(path, buffer.getvalue())
