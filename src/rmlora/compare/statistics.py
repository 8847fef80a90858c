"""What a few paired runs allow one to say: means, paired differences by seed, and many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Differences that agree to this share of their size agree: what is left is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """A sample in three numbers.

    Attributes:
        mean: NaN for no values.
        spread: standard deviation with n - 1 in the denominator; NaN for fewer than two values.
        n: number of values.
    """

    mean: float
    spread: float
    n: int


@dataclass(frozen=True)
class Interval:
    """An estimate and what it may as well be.

    Attributes:
        estimate: the observed value.
        low: lower end; -infinity where nothing is known.
        high: upper end; infinity where nothing is known.
        confidence: how often such intervals hold the truth, between 0 and 1.
    """

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def contains_zero(self) -> bool:
        """Whether no difference at all is among what the interval allows."""
        return not (self.low > 0 or self.high < 0)

    @property
    def half_width(self) -> float:
        """From the middle to either end; infinite where nothing is known."""
        return (self.high - self.low) / 2

    @property
    def is_known(self) -> bool:
        """Whether both ends are numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and number of values.

    Example:
        >>> summarize([1.0, 3.0])
        Summary(mean=2.0, spread=1.4142135623730951, n=2)
        >>> summarize([]).n
        0
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    return Summary(mean, float(np.std(values, ddof=1)) if n > 1 else math.nan, n)


def pair_by_seed(method: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[tuple[int, ...], Array]:
    """Subtract the baseline's value from the method's, seed by seed.

    Runs of one seed share the head's start, the order of the data and the held-out part, so that their difference
    varies less than either value. A seed that only one side has is left out.

    Args:
        method: value by seed.
        baseline: value by seed.

    Returns:
        The seeds both have, ascending, and the differences, `(seeds,)`.

    Example:
        >>> pair_by_seed({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 0: 1.0})
        ((0, 1), array([2., 1.]))
    """
    seeds = tuple(sorted(method.keys() & baseline.keys()))
    return seeds, np.array([method[seed] - baseline[seed] for seed in seeds], dtype=np.float64)


def t_interval(differences: Sequence[float] | Array, confidence: float = 0.95) -> Interval:
    """Return the t interval of the mean of independent values: mean +- t_{n-1} s / sqrt(n).

    With three values t is 4.3, not 2: three runs say little, and this says how little.

    Args:
        differences: `(n,)`, here paired differences.
        confidence: between 0 and 1.

    Returns:
        Infinite ends for fewer than two values, of whose spread nothing is known, and for equal ones: a spread of
        exactly 0 is an accident of a coarse metric on few runs, not certainty. Equal zeros give [0, 0].

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> f"{interval.low:.2f} to {interval.high:.2f}", interval.contains_zero
        ('-0.48 to 4.48', True)
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n > 1 and not values.any():
        return Interval(0.0, 0.0, 0.0, confidence)
    if n < 2 or _is_constant(values):
        return Interval(mean, -math.inf, math.inf, confidence)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, confidence)


def paired_p_value(differences: Sequence[float] | Array) -> float:
    """Test whether paired differences have mean 0: the paired t test, two-sided.

    Equal differences other than 0 have no spread for t to divide by. They are tested by their signs instead: n equal
    signs happen by luck with probability 2 / 2^n.

    Args:
        differences: `(n,)`.

    Returns:
        The p value; 1 if all differences are 0; NaN for fewer than two, which test nothing.

    Example:
        >>> round(paired_p_value([1.0, 2.0, 3.0]), 4), paired_p_value([0.5, 0.5, 0.5]), paired_p_value([0.0, 0.0])
        (0.0742, 0.25, 1.0)
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        return math.nan
    if not values.any():
        return 1.0
    if _is_constant(values):
        return float(2.0 ** (1 - n))
    statistic = float(values.mean()) / (float(values.std(ddof=1)) / math.sqrt(n))
    return float(2 * t.sf(abs(statistic), n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for being looked at together (Holm's step-down procedure).

    The k-th smallest of m is multiplied by m - k + 1 and never falls below its predecessor. Whoever then calls all
    below 0.05 significant is wrong anywhere in the family in at most 5 of 100 families, whatever their dependence.

    Args:
        p_values: the family. NaN marks what could not be tested: it stays NaN and does not count.

    Returns:
        Adjusted p values in the order given, at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")])
        [0.03, 0.06, 0.06, nan]

    Source:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979.
    """
    tested = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(tested):
        largest = max(largest, min(1.0, p_values[i] * (len(tested) - rank)))
        adjusted[i] = largest
    return adjusted


def _is_constant(values: Array) -> bool:
    return float(np.ptp(values)) <= _ROUNDING * float(np.abs(values).max())
