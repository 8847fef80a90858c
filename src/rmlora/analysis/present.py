"""Showing a report to a person: the table, and the plot beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.analysis.names import without_common_start
from rmlora.analysis.plots import plot_report
from rmlora.analysis.report import AdapterReport, ModuleReport

__all__ = ["plot_report", "print_report"]


# Header, and what stands below it. What is the same for all modules is said once above the table instead.
_MEASURED: tuple[tuple[str, Callable[[ModuleReport], str]], ...] = (
    ("rank", lambda row: f"{row.rank}/{row.rank_at_1e_3}/{row.rank_at_1e_2}"),
    ("stable\nrank", lambda row: f"{row.stable_rank:.2f}"),
    ("effect.\nrank", lambda row: f"{row.effective_rank:.2f}"),
    ("A resi-\ndual", lambda row: _short(row.A_residual.total)),
    ("B resi-\ndual", lambda row: _short(row.B_residual.total)),
    ("dW\nexcess", lambda row: _short(row.orthogonality_excess)),
)
_GIVEN: tuple[tuple[str, Callable[[ModuleReport], str]], ...] = (
    ("dW", lambda row: f"{row.d_out}x{row.d_in}"),
    ("r", lambda row: str(row.r)),
    ("scale", lambda row: f"{row.scale:.4g}"),
)


def print_report(report: AdapterReport, console: Console) -> None:
    """Print one line per module, the totals, and how to read the columns.

    Args:
        report: from `inspect_adapter`.
        console: where to; made for 80 columns, and wider ones keep long names on one line.
    """
    same = {header: cell(report.modules[0]) for header, cell in _GIVEN if _is_same(cell, report.modules)}
    console.print(_heading(report, same))
    console.print(_table(report, same))
    console.print(_totals(report))
    console.print(f"[dim]{escape(_legend(report))}[/dim]")
    for note in report.notes:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}")


def _is_same(cell: Callable[[ModuleReport], str], rows: Sequence[ModuleReport]) -> bool:
    return len({cell(row) for row in rows}) == 1


def _heading(report: AdapterReport, same: dict[str, str]) -> str:
    base = f" on {report.base_model}" if report.base_model else ""
    shared = "".join(f", {name} {value}" for name, value in same.items())
    count = len(report.modules)
    modules = f"{count} module{'s' if count > 1 else ''}"
    return f"[bold]{escape(report.folder)}[/bold]: {report.peft_type}{escape(base)}, {modules}{shared}"


def _table(report: AdapterReport, same: dict[str, str]) -> Table:
    shown = [*((header, cell) for header, cell in _GIVEN if header not in same), *_MEASURED]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("module", overflow="fold", min_width=16, vertical="bottom")
    for header, _ in shown:
        table.add_column(header, justify="right", no_wrap=True)
    names = without_common_start([row.name for row in report.modules])
    for name, row in zip(names, report.modules, strict=True):
        table.add_row(escape(name), *(cell(row) for _, cell in shown))
    return table


def _totals(report: AdapterReport) -> str:
    totals = report.totals()
    ranks = f"{totals['rank']}/{totals['rank_at_1e_3']}/{totals['rank_at_1e_2']}"
    return (
        f"[bold]In total[/bold] {totals['parameters']:,} parameters in A and B, {totals['directions']} directions, "
        f"rank {ranks}, A residual {_short(totals['A_residual'])}, B residual {_short(totals['B_residual'])}, "
        f"dW excess {_short(totals['orthogonality_excess'])}; mean stable rank {totals['mean_stable_rank']:.2f}, "
        f"mean effective rank {totals['mean_effective_rank']:.2f}."
    )


def _legend(report: AdapterReport) -> str:
    tolerances = sorted({row.tolerance for row in report.modules})
    first = f"{tolerances[0]:.1e}" + (f" to {tolerances[-1]:.1e}" if len(tolerances) > 1 else "")
    return (
        f"rank: singular values of dW = s B A above {first} (eps * max(d_out, d_in)), 1e-3 and 1e-2 times the largest. "
        "stable rank: ||dW||_F^2 / ||dW||_2^2. effective rank: exp of the spectrum's entropy. "
        "A, B residual: ||A A^T - I||_F^2, ||B^T B - I||_F^2. "
        "dW excess: ||dW dW^T - I||_F^2 above its floor d_out - min(r, d_out, d_in)."
    )


def _short(value: float) -> str:
    """At most six characters for anything an adapter holds."""
    if 100 <= value < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
