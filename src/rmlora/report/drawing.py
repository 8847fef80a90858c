"""Drawing for pages: a panel per figure, in the reader's own text colour, as SVG that names nothing outside itself."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, HEIGHT = 4.4, 3.3  # inches: at a phone's width the text is still about 12 pixels high
BASELINE_COLOUR = "#8a8a8a"
COLOURS = ("#d55e00", "#0a84c6", "#009e73", "#cc79a7", "#c99700", "#7a6ff0", "#56a3b5", "#b5651d", "#6b8e23", "#c2185b")
MARKERS = "osD^vP*Xh<"

# Stands for the page's text colour while matplotlib draws; dark pages have light text.
_INK = "#010203"
_MAX_LEGEND = 12
_LEGEND_LINE = 0.17  # inches


def draw(name: str, paint: Callable[[Any], None], height: float = HEIGHT, legend: bool = True) -> str:
    """Draw one panel.

    Args:
        name: unique on the page; what the SVG refers to inside itself is named after it.
        paint: puts everything on the axes it is given.
        height: inches.
        legend: whether labelled things are listed under the panel.

    Returns:
        An `<svg>` element with a viewBox and no fixed size. Its text is text, and is escaped.

    Example:
        >>> svg = draw("one", lambda axes: axes.plot([1, 2], label="<b>"))
        >>> svg[:4], "&lt;b&gt;" in svg, "<b>" in svg
        ('<svg', True, False)
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes: Any = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        if legend:
            _add_legend(figure, *axes.get_legend_handles_labels())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), name)


def style_of(labels: Sequence[str], baseline: str) -> dict[str, dict[str, str]]:
    """Give every method its colour and marker: grey for the baseline, the same in every figure of a report."""
    others = [label for label in labels if label != baseline]
    styles = {
        label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[1 + i % (len(MARKERS) - 1)]}
        for i, label in enumerate(others)
    }
    return {baseline: {"color": BASELINE_COLOUR, "marker": MARKERS[0]}} | styles


def make_logarithmic(axis: Any) -> None:
    """Give an axis a logarithmic scale with plain numbers: 200, not 2 x 10^2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    # Within a decade or two the powers of ten alone are too few to read a value off.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def say_nothing(axes: Any, text: str) -> None:
    """Put a sentence where there is nothing to draw."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _add_legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """List what is labelled under the panel, which keeps its size: the figure grows."""
    if not 1 <= len(labels) <= _MAX_LEGEND:
        return
    longest = max(map(len, labels))
    columns = min(1 if longest > 26 else 2 if longest > 14 else 3, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (math.ceil(len(labels) / columns) - 1))


def _style(name: str) -> dict[str, Any]:
    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), _INK
    )
    return ink | {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "grid.alpha": 0.25,
        "axes.grid": True,
        "grid.color": _INK,
        "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
    }


def _for_page(svg: str, name: str) -> str:
    """Take the element out of the file: no header, no fixed size, no names that another figure may have too."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    svg = f'{head} role="img">{rest}'
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    return svg.replace(_INK, "currentColor")
