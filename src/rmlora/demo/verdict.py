"""The closing words: what the intervals allow one to say, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rmlora.demo.recipe import BASELINE
from rmlora.demo.summary import Summary


def verdict(summaries: Sequence[Summary]) -> list[str]:
    """Say in sentences what the runs show, whatever it is.

    Args:
        summaries: all arms, the baseline among them.

    Returns:
        One sentence or two per entry: overfitting, what differs, what cannot be told apart, and a caution.
    """
    baseline = next(summary for summary in summaries if summary.is_baseline)
    others = [(summary.label, summary.difference) for summary in summaries if summary.difference is not None]
    n = len(baseline.outcomes)
    said = [
        f"{BASELINE} scores {baseline.mean('gap'):.1f} points higher on its training examples than on the test set."
    ]
    if n < 2:
        return [*said, "One seed has no interval: nothing can be said about differences between the methods."]
    for word, sign in (("higher", 1), ("lower", -1)):
        told = [(name, d) for name, d in others if not d.contains_zero and sign * d.estimate > 0]
        if told:
            named = "; ".join(f"{name} ({d.estimate:+.1f} points, {d.low:+.1f} to {d.high:+.1f})" for name, d in told)
            said.append(f"The interval lies {word} than {BASELINE} altogether: {named}.")
    unclear = [(name, d) for name, d in others if d.contains_zero]
    if unclear:
        named = ", ".join(name for name, _ in unclear)
        said.append(f"Not to be told from {BASELINE}: {named}.{_reach([d.half_width for _, d in unclear], n)}")
    return [*said, _caution(len(others))]


def _reach(half_widths: Sequence[float], n: int) -> str:
    """What could have been seen; nothing where all differences are equal, whose spread is not known."""
    known = [width for width in half_widths if math.isfinite(width)]
    if not known:
        return ""
    reach = f"{min(known):.1f}" if len(known) == 1 else f"{min(known):.1f} to {max(known):.1f}"
    return f" With {n} seeds and this spread only differences beyond {reach} points would show."


def _caution(num_comparisons: int) -> str:
    by_luck = 100 * (1 - 0.95**num_comparisons)
    return (
        f"{num_comparisons} comparisons at 95% each: were there no differences at all and the comparisons independent, "
        f"some interval would still miss 0 in {by_luck:.0f}% of such tables."
    )
