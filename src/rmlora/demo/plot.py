"""One picture of the demo: learning curves, paired differences, overfitting, effective rank."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rmlora.demo.recipe import BASELINE
from rmlora.demo.summary import Summary
from rmlora.files import write_bytes

_COLOURS = {"full": "0.45", "lora": "tab:blue", "r-lora": "tab:green", "gm-lora": "tab:orange", "rm-lora": "tab:red"}


def plot_comparison(summaries: Sequence[Summary], path: Path) -> Path:
    """Draw the comparison as a PNG, written whole or not at all.

    Args:
        summaries: all arms, the baseline among them.
        path: the file; an existing one is replaced.

    Returns:
        `path`.

    Raises:
        RmloraError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    seeds = len(summaries[0].outcomes)
    figure.suptitle(f"Digits 0 to 4 adapted to digits 5 to 9, {seeds} seed{'s' if seeds > 1 else ''} each", fontsize=12)
    axes: Any = figure.subplots(2, 2)
    _draw_curves(axes[0][0], summaries)
    _draw_differences(axes[0][1], [summary for summary in summaries if not summary.is_baseline])
    _draw_gaps(axes[1][0], summaries)
    _draw_ranks(axes[1][1], summaries)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return write_bytes(path, buffer.getvalue())


def _style(summary: Summary) -> dict[str, Any]:
    """Colour says the method, dashes say the large rank."""
    first = summary.outcomes[0]
    return {"color": _COLOURS.get(first.method, "black"), "linestyle": "--" if first.r > 4 else "-"}


def _draw_curves(ax: Any, summaries: Sequence[Summary]) -> None:
    for summary in summaries:
        curves = [run.curve for run in summary.outcomes]
        steps = [step for step, _, _ in curves[0]]
        tests = [fmean(test for _, _, test in points) for points in zip(*curves, strict=True)]
        ax.plot(steps, tests, label=summary.label, linewidth=1.6, **_style(summary))
    ax.set_title("test accuracy while training, mean over seeds", fontsize=10)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("points")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="lower right")


def _draw_differences(ax: Any, summaries: Sequence[Summary]) -> None:
    """Interval and mean of each method; the ends of wide intervals are drawn, not cut."""
    for line, summary in enumerate(summaries):
        interval = summary.difference
        if interval is None:
            continue
        colour = _style(summary)["color"]
        width = interval.half_width if interval.is_known else 0.0
        ax.errorbar(interval.estimate, line, xerr=width, fmt="o", color=colour, capsize=4, markersize=7)
    ax.axvline(0, color="black", linewidth=0.8)
    _name_lines(ax, summaries)
    ax.set_title(f"paired difference to {BASELINE}, mean and 95% t interval", fontsize=10)
    ax.set_xlabel("points of test accuracy")


def _draw_gaps(ax: Any, summaries: Sequence[Summary]) -> None:
    """Every seed as a point; the bar between the means is the overfitting."""
    for line, summary in enumerate(summaries):
        colour = _style(summary)["color"]
        train, test = summary.mean("train_accuracy") or 0.0, summary.mean("test_accuracy") or 0.0
        ax.plot([test, train], [line, line], color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
        for run in summary.outcomes:
            ax.plot(run.test_accuracy, line, "o", color=colour, markersize=5)
            ax.plot(run.train_accuracy, line, "|", color=colour, markersize=12, markeredgewidth=2)
        ax.annotate(f"{train - test:.1f}", ((train + test) / 2, line), ha="center", va="center", fontsize=8)
    _name_lines(ax, summaries)
    ax.set_title("overfitting: test (dots) to train (ticks) accuracy, every seed", fontsize=10)
    ax.set_xlabel("points")


def _draw_ranks(ax: Any, summaries: Sequence[Summary]) -> None:
    for line, summary in enumerate(summaries):
        rank = summary.mean("effective_rank") or 0.0
        ax.barh(line, rank, color=_style(summary)["color"], alpha=0.7)
        r = summary.outcomes[0].r
        ax.annotate(f" {rank:.1f}" + (f" of {r}" if r else ""), (rank, line), va="center", fontsize=8)
    _name_lines(ax, summaries)
    ax.margins(x=0.15)
    ax.set_title("effective rank of dW, mean over modules and seeds", fontsize=10)
    ax.set_xlabel("directions")


def _name_lines(ax: Any, summaries: Sequence[Summary]) -> None:
    ax.set_yticks(range(len(summaries)), [summary.label for summary in summaries], fontsize=9)
    ax.set_ylim(len(summaries) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.25)
