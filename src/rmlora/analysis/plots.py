"""One page about an adapter: effective and stable rank of every module, and all spectra."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmlora.analysis.names import Layout, lay_out, without_common_start
from rmlora.analysis.report import AdapterReport, ModuleReport
from rmlora.files import write_bytes

_MEASURES: tuple[tuple[str, Callable[[ModuleReport], float]], ...] = (
    ("effective rank", lambda row: row.effective_rank),
    ("stable rank", lambda row: row.stable_rank),
)
_MAX_HEIGHT = 60.0  # inches; PNG readers give up long before matplotlib does
_MAX_LABELLED_ROWS = 120
_MAX_LEGEND = 12
_SPECTRA_PER_LINE = 6


def plot_report(report: AdapterReport, path: str | Path) -> Path:
    """Draw the report as a PNG, written whole or not at all.

    Modules that repeat over layers become two heat maps of layers by projections with their numbers written in,
    and a spectrum panel per projection; others become bars. Needs matplotlib, no display and no pyplot state.

    Args:
        report: from `inspect_adapter`.
        path: the file to write; missing folders are made, an existing file is replaced.

    Returns:
        `path`.

    Raises:
        RmloraError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(report)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return write_bytes(Path(path), buffer.getvalue())


def _figure(report: AdapterReport) -> Any:
    from matplotlib.figure import Figure

    layout = lay_out([row.name for row in report.modules])
    ranks_height = _ranks_height(layout)
    panels = math.ceil(len(layout.columns) / _SPECTRA_PER_LINE) if layout.is_grid else 1
    spectra_height = min(2.9 * panels + 0.6, _MAX_HEIGHT)
    figure = Figure(figsize=(13, ranks_height + spectra_height + 0.5), layout="constrained")
    figure.suptitle(_title(report), fontsize=11, ha="left", x=0.01)
    parts: Any = figure.subfigures(2, 1, height_ratios=[ranks_height, spectra_height])
    upper, lower = parts
    if layout.is_grid:
        _draw_heat(upper, report, layout)
        _draw_spectra_by_column(lower, report, layout)
    else:
        _draw_bars(upper, report)
        _draw_spectra_together(lower, report)
    return figure


def _ranks_height(layout: Layout) -> float:
    lines = len(layout.rows) if layout.is_grid else 1.5 * len(layout.cells)
    return min(0.27 * lines + 1.7, _MAX_HEIGHT)


def _title(report: AdapterReport) -> str:
    totals = report.totals()
    base = f" on {report.base_model}" if report.base_model else ""
    directions = sorted({row.r for row in report.modules})
    r = str(directions[0]) if len(directions) == 1 else f"{directions[0]} to {directions[-1]}"
    means = (
        f"mean effective rank {totals['mean_effective_rank']:.2f}, mean stable rank {totals['mean_stable_rank']:.2f}"
    )
    return f"{Path(report.folder).name}{base}: {totals['modules']} modules, r = {r}, {means}"


def _draw_heat(figure: Any, report: AdapterReport, layout: Layout) -> None:
    """Two maps of layers by projections, each cell with its number."""
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (title, measure) in zip(axes, _MEASURES, strict=True):
        values = [[math.nan] * len(layout.columns) for _ in layout.rows]
        for row in report.modules:
            i, j = layout.cells[row.name]
            values[i][j] = measure(row)
        image = ax.imshow(values, aspect="auto", cmap="viridis", vmin=0)
        figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
        ax.set_title(title, fontsize=10)
        ax.set_xticks(range(len(layout.columns)), layout.columns, rotation=25, ha="right", fontsize=8)
        ax.set_yticks(range(len(layout.rows)), [label or "-" for label in layout.rows], fontsize=8)
        if len(layout.rows) <= _MAX_LABELLED_ROWS:
            _write_cells(ax, values, middle=image.norm.vmax / 2)
    axes[0].set_ylabel("layer")


def _write_cells(ax: Any, values: list[list[float]], middle: float) -> None:
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if math.isfinite(value):
                colour = "black" if value > middle else "white"
                ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=colour)


def _draw_bars(figure: Any, report: AdapterReport) -> None:
    """One line per module, where there are no layers to stack."""
    ax = figure.subplots()
    names = without_common_start([row.name for row in report.modules])
    for offset, (title, measure) in zip((-0.2, 0.2), _MEASURES, strict=True):
        heights = [measure(row) for row in report.modules]
        bars = ax.barh([i + offset for i in range(len(names))], heights, height=0.36, label=title)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    ax.plot([row.r for row in report.modules], range(len(names)), "k|", markersize=16, label="r")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("directions")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_spectra_by_column(figure: Any, report: AdapterReport, layout: Layout) -> None:
    """A panel per projection, a line per layer, coloured by depth."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    across = min(_SPECTRA_PER_LINE, len(layout.columns))
    down = math.ceil(len(layout.columns) / across)
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    depth = Normalize(0, max(1, len(layout.rows) - 1))
    for row in report.modules:
        i, j = layout.cells[row.name]
        _draw_spectrum(axes[j], row, color=colormaps["plasma"](0.9 * depth(i)), linewidth=1.1)
    for ax, title in zip(axes, layout.columns, strict=False):
        _dress_spectra(ax, title)
    for ax in axes[len(layout.columns) :]:
        ax.set_visible(False)
    for ax in axes[::across]:
        ax.set_ylabel("singular value of dW", fontsize=8)
    bar = figure.colorbar(ScalarMappable(depth, "plasma"), ax=axes.tolist(), fraction=0.012, pad=0.01)
    bar.set_ticks([0, max(1, len(layout.rows) - 1)], labels=["first layer", "last"], fontsize=8)


def _draw_spectra_together(figure: Any, report: AdapterReport) -> None:
    """All modules in one panel, with a legend while it stays readable."""
    ax = figure.subplots()
    names = without_common_start([row.name for row in report.modules])
    for name, row in zip(names, report.modules, strict=True):
        _draw_spectrum(ax, row, linewidth=1.3, label=name)
    _dress_spectra(ax, "spectra")
    ax.set_ylabel("singular value of dW", fontsize=8)
    if len(names) <= _MAX_LEGEND:
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_spectrum(ax: Any, row: ModuleReport, **style: Any) -> None:
    """A zero has no place on a logarithmic axis and is left out."""
    values = [value if value > 0 else math.nan for value in row.singular_values]
    ax.plot(range(1, len(values) + 1), values, marker="o", markersize=2.5, **style)


def _dress_spectra(ax: Any, title: str) -> None:
    drawn = any(math.isfinite(value) for line in ax.lines for value in line.get_ydata())
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("direction", fontsize=8)
    ax.tick_params(which="both", labelsize=8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if drawn:
        ax.set_yscale("log")
        ax.grid(alpha=0.25)
    else:
        ax.text(0.5, 0.5, "dW = 0", transform=ax.transAxes, ha="center", va="center")
