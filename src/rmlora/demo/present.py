"""The table and the closing words of the demo."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from rmlora.demo.digits import Digits
from rmlora.demo.recipe import BASELINE, Recipe
from rmlora.demo.summary import Summary
from rmlora.demo.verdict import verdict

_COLUMNS = ("trained\nparams", "test acc.\nmean +- sd", "train\n-test", "eff.\nrank", "dW\nexcess")


def print_comparison(summaries: Sequence[Summary], digits: Digits, recipe: Recipe, console: Console) -> None:
    """Print one line per method, how to read it, and what it allows one to say.

    Args:
        summaries: all arms, the baseline among them.
        digits: the data, for the size of the test set.
        recipe: what was done.
        console: where to; made for 80 columns.
    """
    console.print(_table(summaries))
    console.print(f"[dim]{_legend(summaries, digits, recipe)}[/dim]")
    for sentence in verdict(summaries):
        console.print(f"- {sentence}")


def _table(summaries: Sequence[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True, vertical="bottom")
    for header in _COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(f"difference to\n{BASELINE} \\[95%]", justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(*_cells(summary), style="bold" if summary.is_baseline else "")
    return table


def _cells(summary: Summary) -> tuple[str, ...]:
    spread = "" if summary.spread is None else f" +- {summary.spread:.1f}"
    return (
        summary.label,
        f"{summary.mean('trainable_parameters'):,.0f}",
        f"{summary.mean('test_accuracy'):.1f}{spread}",
        f"{summary.mean('gap'):.1f}",
        f"{summary.mean('effective_rank'):.1f}",
        f"{summary.mean('orthogonality_excess'):.1f}",
        _difference(summary),
    )


def _difference(summary: Summary) -> str:
    interval = summary.difference
    if interval is None:
        return "-"
    if not interval.is_known:
        return f"{interval.estimate:+.1f}"
    return f"{interval.estimate:+.1f} \\[{interval.low:+.1f}, {interval.high:+.1f}]"


def _legend(summaries: Sequence[Summary], digits: Digits, recipe: Recipe) -> str:
    seeds = len(summaries[0].outcomes)
    return (
        f"{recipe.shots} labelled examples of each of the digits 5 to 9, {len(digits.test)} test examples (one is "
        f"{digits.points_per_example:.2f} points), last step of {recipe.num_steps}, n = {seeds} "
        f"seed{'s' if seeds > 1 else ''}. Within a seed every method has the same examples, order and initial adapter, "
        "so differences are paired; the interval is a t interval over seeds. Learning rates were chosen for each line "
        "alike, on other seeds and without the test set. full: every weight learns. 2 of 4: two of four directions "
        "learn at a step, drawn anew each time. train-test: points of overfitting. "
        "eff. rank: effective rank of dW, mean over modules. "
        "dW excess: ||dW dW^T - I||_F^2 above its floor, mean over modules; r for dW = 0, 0 for an orthonormal dW."
    )
