"""What a few paired runs allow one to say: a t interval of the mean difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean and the 95% t interval around it.

    Attributes:
        mean: of the n values.
        half_width: from the mean to either end; infinite for n = 1, where nothing is known of the spread.
        n: number of values.
    """

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half_width

    @property
    def contains_zero(self) -> bool:
        """Whether no difference at all is among what the interval allows."""
        return self.low <= 0 <= self.high


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the t interval of the mean of independent values, here differences of paired runs.

    mean +- t_{n-1} * s / sqrt(n). With three values t is 4.3, not 2: three runs say little, and this says how little.

    Args:
        values: at least one.
        confidence: between 0 and 1.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> f"{interval.mean:.2f} +- {interval.half_width:.2f}, contains 0: {interval.contains_zero}"
        '2.00 +- 2.48, contains 0: True'
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return Interval(fmean(values), math.inf, n)
    quantile = float(t.ppf((1 + confidence) / 2, n - 1))
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(n), n)
