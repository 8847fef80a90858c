"""How a report writes numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rmlora.compare.statistics import Interval, Summary, summarize

NONE = "-"


def with_spread(summary: Summary, scale: float = 1.0, digits: int = 2) -> str:
    """Write mean and spread.

    Example:
        >>> with_spread(summarize([0.5, 0.7]), 100), with_spread(summarize([0.5]), 100), with_spread(summarize([]))
        ('60.00 ± 14.14', '50.00', '-')
    """
    if math.isnan(summary.mean):
        return NONE
    mean = f"{scale * summary.mean:.{digits}f}"
    return mean if math.isnan(summary.spread) else f"{mean} ± {scale * summary.spread:.{digits}f}"


def mean_of(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Write mean and spread of values; a dash for none."""
    return with_spread(summarize(values), scale, digits)


def between(interval: Interval, scale: float = 1.0, digits: int = 2) -> str:
    """Write an interval.

    Example:
        >>> between(Interval(1.0, -0.5, 2.5)), between(Interval(1.0, -math.inf, math.inf))
        ('[-0.50, +2.50]', '-')
    """
    if not interval.is_known:
        return NONE
    return f"[{scale * interval.low:+.{digits}f}, {scale * interval.high:+.{digits}f}]"


def difference(interval: Interval, scale: float = 1.0, digits: int = 2) -> str:
    """Write an estimate with its sign and its interval."""
    if math.isnan(interval.estimate):
        return NONE
    estimate = f"{scale * interval.estimate:+.{digits}f}"
    return f"{estimate} {between(interval, scale, digits)}" if interval.is_known else estimate


def probability(p: float) -> str:
    """Write a p value.

    Example:
        >>> probability(0.0312), probability(1e-7), probability(math.nan)
        ('0.031', '<0.001', '-')
    """
    if math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(number: float | int | None) -> str:
    """Write a number of things.

    Example:
        >>> count(663552), count(None)
        ('663,552', '-')
    """
    return NONE if number is None else f"{number:,.0f}"


def compact(value: float) -> str:
    """Write a positive quantity of any size with four digits.

    Example:
        >>> compact(585.84), compact(0.01234), compact(10200.0)
        ('585.8', '0.01234', '10,200')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
