"""Curves over the epochs, a line per method with a band over its seeds: the figures of the paper's Figure 1."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeGuard

from rmlora.report.drawing import draw, make_logarithmic, say_nothing

_LONG_RUN = 10  # epochs
Runs = Sequence[Sequence[Mapping[str, Any]]]  # one run per seed, one row per epoch


@dataclass(frozen=True)
class Point:
    """A method at one epoch, over its seeds.

    Attributes:
        epoch: from 1.
        mean: over seeds.
        spread: standard deviation; 0 for one seed.
    """

    epoch: float
    mean: float
    spread: float


def curve(runs: Runs, key: str) -> list[Point]:
    """Average one quantity over seeds, epoch by epoch; epochs at which no run has it are left out.

    Example:
        >>> curve([[{"epoch": 1, "gap": 0.1}], [{"epoch": 1, "gap": 0.3}]], "gap")[0].mean
        0.2
    """
    found: dict[float, list[float]] = defaultdict(list)
    for rows in runs:
        for row in rows:
            value, epoch = row.get(key), row.get("epoch")
            if is_number(value) and is_number(epoch):
                found[float(epoch)].append(float(value))
    return [
        Point(epoch, fmean(values), stdev(values) if len(values) > 1 else 0.0)
        for epoch, values in sorted(found.items())
    ]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a field of a row holds a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw_curves(
    name: str,
    curves: Mapping[str, Sequence[Point]],
    styles: Mapping[str, Mapping[str, str]],
    title: str,
    scale: float = 1.0,
    is_log: bool = False,
) -> str:
    """Draw the curves of all methods.

    Args:
        name: of the figure.
        curves: by method; empty ones are left out.
        styles: colour and marker by method.
        title: over the panel.
        scale: the values are multiplied by it.
        is_log: logarithmic values; a band never goes below a tenth of its mean then.
    """

    def paint(axes: Any) -> None:
        for label, points in curves.items():
            if not points:
                continue
            epochs, means = [p.epoch for p in points], [scale * p.mean for p in points]
            spreads = [scale * p.spread for p in points]
            lows = [max(m - s, 0.1 * m) if is_log else m - s for m, s in zip(means, spreads, strict=True)]
            highs = [m + s for m, s in zip(means, spreads, strict=True)]
            every = max(1, len(epochs) // 8)
            axes.plot(epochs, means, label=label, markevery=every, **styles[label])
            axes.fill_between(epochs, lows, highs, color=styles[label]["color"], alpha=0.18, linewidth=0)
        axes.set_title(title, loc="left")
        if not axes.lines:
            say_nothing(axes, "not measured")
            return
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _skip_start(axes, [[scale * p.mean for p in points] for points in curves.values()])
        if is_log and all(p.mean > 0 for points in curves.values() for p in points):
            make_logarithmic(axes.yaxis)

    return draw(name, paint)


def _skip_start(axes: Any, lines: Sequence[Sequence[float]]) -> None:
    """Give the panel to what comes after the first fifth of a long run, where a steep start would flatten it."""
    later = [value for line in lines if len(line) >= _LONG_RUN for value in line[len(line) // 5 :]]
    everything = [value for line in lines for value in line]
    if not later or max(everything) - min(everything) < 4 * (max(later) - min(later)):
        return
    margin = 0.15 * (max(later) - min(later)) or 1.0
    axes.set_ylim(min(later) - margin, max(later) + margin)
    axes.set_title(f"{axes.get_title(loc='left')} (start cut off)", loc="left")
