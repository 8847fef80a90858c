"""A difference in words: in points, and in how many examples that is."""

from __future__ import annotations

import math

from rmlora.compare.statistics import Interval

# Metrics that count right answers, so that a difference times n is a number of examples.
COUNTED = ("accuracy", "exact_match", "em")
# Metrics on a scale of their own, shown as they are; all others lie in [-1, 1] and are shown in hundredths.
OWN_SCALE = ("loss", "perplexity", "log_likelihood")
LOWER_IS_BETTER = ("loss", "perplexity")


def points_per_unit(metric: str, values: list[float] | None = None) -> float:
    """Return what to multiply a metric by to show it: 100, or 1 where it has a scale of its own.

    Args:
        metric: its name.
        values: some of its values; any above 1.5 says that they are in points already.

    Example:
        >>> points_per_unit("accuracy"), points_per_unit("perplexity"), points_per_unit("f1", [93.6])
        (100.0, 1.0, 1.0)
    """
    in_points = any(math.isfinite(value) and abs(value) > 1.5 for value in values or [])
    return 1.0 if metric in OWN_SCALE or in_points else 100.0


def describe_effect(interval: Interval, metric: str, num_examples: int | None, scale: float = 100.0) -> str:
    """Say a difference so that nobody takes four examples for progress.

    Args:
        interval: of the difference, method minus baseline.
        metric: its name; accuracy is also said in examples.
        num_examples: of the held-out part; None if unknown.
        scale: what makes points of the metric.

    Example:
        >>> describe_effect(Interval(4 / 277, -0.01, 0.039), "accuracy", 277)
        '+1.4 = 4 of 277 examples; 95% interval -1.0 to +3.9 includes 0'
    """
    if math.isnan(interval.estimate):
        return "no run of the same seed to compare with"
    digits = 1 if scale == 100.0 and metric in COUNTED else 2
    said = f"{scale * interval.estimate:+.{digits}f}"
    if metric in COUNTED and num_examples:
        said += f" = {_count(abs(interval.estimate) * num_examples * scale / 100)} of {num_examples} examples"
    if not interval.is_known:
        return f"{said}; too few runs for an interval"
    ends = f"{scale * interval.low:+.{digits}f} to {scale * interval.high:+.{digits}f}"
    return f"{said}; {interval.confidence:.0%} interval {ends} {'includes' if interval.contains_zero else 'excludes'} 0"


def _count(examples: float) -> str:
    whole = round(examples)
    return str(whole) if abs(examples - whole) < 0.05 else f"{examples:.1f}"
