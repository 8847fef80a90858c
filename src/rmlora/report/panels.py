"""Figures of a whole study: paired differences, rank against orthogonality against the metric, heat maps, spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.compare.verdicts import Comparison
from rmlora.report.drawing import draw, make_logarithmic, say_nothing

Styles = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Dot:
    """One run in the scatter.

    Attributes:
        label: its method.
        effective_rank: of dW.
        orthogonality_loss: of dW.
        value: the metric, in points.
    """

    label: str
    effective_rank: float
    orthogonality_loss: float
    value: float


def draw_differences(name: str, compared: Sequence[Comparison], styles: Styles, scale: float) -> str:
    """Draw each method's difference to the baseline: t interval thick, bootstrap over seeds and examples thin."""

    def paint(axes: Any) -> None:
        ends: list[float] = [0.0]
        for line, one in enumerate(compared):
            colour = styles[one.label]["color"]
            wide = one.over_examples.interval if one.over_examples else None
            for interval, width, above in ((one.over_seeds, 3.0, 0.0), (wide, 1.2, 0.22)):
                if interval is not None and interval.is_known:
                    low, high = scale * interval.low, scale * interval.high
                    axes.plot([low, high], [line + above] * 2, color=colour, linewidth=width)
                    ends += [low, high]
            axes.plot(scale * one.over_seeds.estimate, line, marker=styles[one.label]["marker"], ms=7, color=colour)
            ends.append(scale * one.over_seeds.estimate)
        axes.axvline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8)
        axes.set_yticks(range(len(compared)), [one.label for one in compared])
        axes.set_ylim(len(compared) - 0.5, -0.5)
        finite = [end for end in ends if math.isfinite(end)]
        margin = 0.08 * (max(finite) - min(finite)) or 1.0
        axes.set_xlim(min(finite) - margin, max(finite) + margin)
        axes.set_xlabel(f"{compared[0].metric}, difference")

    return draw(name, paint, height=1.1 + 0.42 * len(compared), legend=False)


def draw_scatter(name: str, dots: Sequence[Dot], styles: Styles, metric: str) -> str:
    """Draw effective rank against orthogonality loss; the size of a dot is the metric, from the worst to the best."""

    def paint(axes: Any) -> None:
        values = [dot.value for dot in dots]
        low, high = min(values), max(values)
        for label in dict.fromkeys(dot.label for dot in dots):
            own = [dot for dot in dots if dot.label == label]
            sizes = [20 + 160 * ((dot.value - low) / (high - low) if high > low else 0.5) for dot in own]
            axes.scatter(
                [dot.effective_rank for dot in own],
                [dot.orthogonality_loss for dot in own],
                s=sizes,
                alpha=0.65,
                linewidths=0,
                label=label,
                **styles[label],
            )
        if all(dot.orthogonality_loss > 0 for dot in dots):
            make_logarithmic(axes.yaxis)
        axes.set_xlabel("effective rank of dW")
        axes.set_ylabel("orthogonality loss of dW")
        axes.set_title(f"size: {metric}, {low:.2f} to {high:.2f}", loc="left")

    return draw(name, paint)


def draw_heat(
    name: str, weights: Sequence[float], directions: Sequence[float], cells: Mapping[tuple[float, float], float]
) -> str:
    """Draw weight against directions, the number written into each cell; a cell that was not run stays empty."""

    def paint(axes: Any) -> None:
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        grid = [[cells.get((weight, kept), math.nan) for kept in directions] for weight in weights]
        known = [value for value in cells.values() if math.isfinite(value)]
        if not known:
            say_nothing(axes, "not measured")
            return
        axes.pcolormesh(grid, cmap="viridis", edgecolors="none")
        middle = (min(known) + max(known)) / 2
        for i, row in enumerate(grid):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    colour = "black" if value > middle else "white"
                    axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xticks([j + 0.5 for j in range(len(directions))], [f"{kept:g}" for kept in directions])
        axes.set_yticks([i + 0.5 for i in range(len(weights))], [f"{weight:g}" for weight in weights])
        axes.set_xlabel("directions trained per step")
        axes.set_ylabel("weight of the penalty")

    return draw(name, paint, height=1.2 + 0.45 * len(weights), legend=False)


def draw_spectra(name: str, spectra: Mapping[str, Sequence[float]], styles: Styles) -> str:
    """Draw the spectrum of dW by method, relative to its largest value, on a logarithmic axis."""

    def paint(axes: Any) -> None:
        for label, values in spectra.items():
            shown = [value if value > 0 else math.nan for value in values]
            axes.plot(range(1, len(shown) + 1), shown, label=label, **styles[label])
        make_logarithmic(axes.yaxis)
        axes.set_xlabel("direction")
        axes.set_title("singular values of dW, largest = 1", loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return draw(name, paint)
