"""The tables a benchmark prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rmlora.bench.operators import Operator, shares
from rmlora.bench.subjects import SUBJECTS

_TOP = 12
_LONGEST = 42
_MIB = 2**20


def show_subjects(console: Console) -> None:
    """List the models that are measured where none is named."""
    width = max(map(len, SUBJECTS))
    for subject in SUBJECTS.values():
        texts = "images" if subject.length is None else f"texts of {subject.length} tokens"
        console.print(f"{subject.name:<{width}}  {subject.model_type}, {subject.batch} {texts}", highlight=False)


def show_results(summary: Mapping[str, Any], console: Console) -> None:
    """Print seconds, ratios, memory and the share of the hooks of one model.

    Args:
        summary: the row.
        console: where to; made for 80 columns.
    """
    sizes = " ".join(f"{name} {'x'.join(map(str, size))}" for name, size in summary["batch_used"].items())
    given = summary["settings"]
    how = f"{given['dtype']}{', autocast' if given['autocast'] else ''}, {given['device']}, r = {given['r']}"
    console.print(f"{summary['model']}: {summary['adapted']} modules adapted; {sizes}; {how}", highlight=False)
    console.print(_contenders_table(summary))
    console.print(_ratios_table(summary["ratios"]))


def show_operators(name: str, operators: Sequence[Operator], console: Console) -> None:
    """Print the operators of one contender that take most of a step, and the share of each sort."""
    whole = sum(operator.self_s for operator in operators) or 1.0
    table = _table(f"{name}: operators by self time", "operator", "sort", "calls", "ms", "share")
    for operator in operators[:_TOP]:
        share = f"{operator.self_s / whole:.1%}"
        table.add_row(operator.name, operator.sort, str(operator.calls), f"{1000 * operator.self_s:.2f}", share)
    console.print(table)
    console.print(", ".join(f"{sort} {share:.1%}" for sort, share in shares(operators).items()), highlight=False)


def _contenders_table(summary: Mapping[str, Any]) -> Table:
    headers = ("", "ms\na step", "quartiles", "peak\nMiB", "stays\nMiB", "above\nfloor", "in\nhooks")
    table = _table(None, *headers)
    for name, seconds in summary["seconds"].items():
        memory, hooks = summary["memory"][name], summary["hook_shares"].get(name)
        table.add_row(
            name,
            f"{1000 * seconds['median']:.1f}",
            f"{1000 * seconds['low']:.1f} to {1000 * seconds['high']:.1f}",
            f"{memory['peak_bytes'] / _MIB:.1f}",
            f"{memory['stays_bytes'] / _MIB:.1f}",
            "-" if memory["excess_bytes"] is None else f"{memory['excess_bytes'] / _MIB:+.1f}",
            "-" if hooks is None else f"{hooks['median']:.2%}",
        )
    return table


def _ratios_table(ratios: Mapping[str, Mapping[str, float]]) -> Table:
    table = _table(None, "ratio, round by round", "median", "quartiles")
    for name, one in ratios.items():
        table.add_row(name, f"{one['median']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
    return table


def _table(title: str | None, first: str, *headers: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column(first, no_wrap=True, vertical="bottom", max_width=_LONGEST)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    return table
