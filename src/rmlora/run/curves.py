"""The picture of a run: loss, metric, generalisation gap and effective rank over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rmlora.files import write_bytes
from rmlora.run.folder import RunFolder
from rmlora.run.record import best_row

_TRAIN, _EVAL, _OTHER = "#7f7f7f", "#1f77b4", "#d95f02"


def plot_curves(folder: RunFolder, rows: Sequence[dict[str, Any]], metric: str, title: str) -> None:
    """Draw metrics.jsonl into curves.png; the best epoch is marked.

    Args:
        folder: of the run.
        rows: of metrics.jsonl, at least one.
        metric: the one that decides the best epoch.
        title: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2).flat
    _draw(axes[0], rows, "loss", {"train": ("train_loss", _TRAIN), "eval": ("eval_loss", _EVAL)})
    _draw(axes[1], rows, metric, {"train": (f"train_{metric}", _TRAIN), "eval": (f"eval_{metric}", _EVAL)})
    _draw(axes[2], rows, f"gap: train - eval {metric}", {"gap": ("gap", _OTHER)})
    axes[2].axhline(0, color="black", linewidth=0.6)
    _draw(axes[3], rows, "effective rank of s B A, mean over modules", {"rank": ("effective_rank", _OTHER)})
    best = best_row(rows, metric)
    for axis in axes[:2]:
        axis.axvline(best["epoch"], color=_EVAL, linestyle=":", label=f"best epoch ({best['epoch']})")
        axis.legend()
    figure.suptitle(title)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_bytes(folder.curves, buffer.getvalue())


def _draw(axis: Any, rows: Sequence[dict[str, Any]], title: str, lines: dict[str, tuple[str, str]]) -> None:
    for label, (name, color) in lines.items():
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", color=color, label=label)
    if not axis.lines:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
