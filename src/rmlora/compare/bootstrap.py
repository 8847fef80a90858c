"""Resampling: what the difference of two methods would be on other examples, and with other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmlora.compare.scores import Score
from rmlora.compare.statistics import Array, Interval

_MAX_CELLS = 4_000_000  # of a matrix of resamples by examples that is held at once


@dataclass(frozen=True)
class Resampled:
    """What resampling says of a difference.

    Attributes:
        interval: of percentiles.
        p_value: two-sided, twice the share of resamples on the rarer side of 0; NaN where nothing could be resampled.
    """

    interval: Interval
    p_value: float


def bootstrap_examples(
    method: Score, baseline: Score, *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Resampled:
    """Bootstrap the difference of two runs over the examples they share: the same draw for both sides.

    Args:
        method: one run's score.
        baseline: the other's, on the same examples in the same order.
        num_resamples: >= 1.
        confidence: between 0 and 1.
        seed: of a private generator.

    Raises:
        ValueError: the two have different numbers of examples.

    Example:
        >>> from rmlora.compare.scores import score_of
        >>> logits = np.eye(2)[[0, 1] * 50]
        >>> right, half = (score_of("accuracy", logits, labels) for labels in (logits.argmax(1), np.zeros(100)))
        >>> bootstrap_examples(right, half).interval.contains_zero
        False
    """
    return bootstrap_seeds_and_examples(
        [method], [baseline], num_resamples=num_resamples, confidence=confidence, seed=seed
    )


def bootstrap_seeds_and_examples(
    method: Sequence[Score],
    baseline: Sequence[Score],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Resampled:
    """Bootstrap the mean difference over seeds and, under every seed, over the examples.

    Each resample draws examples once, for all runs alike, and then seeds. With S seeds a resample of seeds varies by
    (S - 1) / S too little, so its deviations are stretched by sqrt(S / (S - 1)). With few seeds the interval is still
    too narrow, as any bootstrap of a handful of values is: read it together with the t interval.

    Args:
        method: scores by seed, at least one.
        baseline: the baseline's, of the same seeds in the same order, on the same examples.
        num_resamples: >= 1.
        confidence: between 0 and 1.
        seed: of a private generator.

    Returns:
        With one seed, the bootstrap over examples. Infinite ends and NaN for no examples.

    Raises:
        ValueError: numbers of seeds or of examples differ.

    Source:
        Davison and Hinkley, Bootstrap Methods and their Application, Sec. 3.8, for stages and their stretching.
        Deviation: examples are crossed with seeds, not nested in them.
    """
    num_examples = {len(score) for score in (*method, *baseline)}
    if len(method) != len(baseline) or len(num_examples) != 1:
        raise ValueError("both sides need the same seeds and the same examples")
    if num_examples == {0}:
        return Resampled(Interval(math.nan, -math.inf, math.inf, confidence), math.nan)
    observed = float(np.mean([a.value() - b.value() for a, b in zip(method, baseline, strict=True)]))
    generator = np.random.default_rng(seed)
    draws = np.concatenate(
        [
            _over_seeds(_differences(method, baseline, counts), generator)
            for counts in _draws_of_examples(num_examples.pop(), num_resamples, generator)
        ]
    )
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    # Resamples that come out at 0 up to rounding count for both sides.
    rounding = 1e-12
    rarer = min(int((draws <= rounding).sum()), int((draws >= -rounding).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + num_resamples))
    return Resampled(Interval(observed, float(low), float(high), confidence), p_value)


def _draws_of_examples(n: int, num_resamples: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield counts `(some, n)`: how often each example is drawn in each resample."""
    at_once = max(1, _MAX_CELLS // n)
    for start in range(0, num_resamples, at_once):
        some = min(at_once, num_resamples - start)
        drawn = generator.integers(0, n, (some, n)) + np.arange(some)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=some * n).reshape(some, n).astype(np.float64)


def _differences(method: Sequence[Score], baseline: Sequence[Score], counts: Array) -> Array:
    """Differences `(resamples, seeds)` on the examples drawn."""
    columns = [a.resampled(counts) - b.resampled(counts) for a, b in zip(method, baseline, strict=True)]
    return np.stack(columns, axis=1)


def _over_seeds(differences: Array, generator: np.random.Generator) -> Array:
    """Draw seeds for every row and average, `(resamples,)`."""
    rows, seeds = differences.shape
    centre: Array = differences.mean(1)
    if seeds == 1:
        return centre
    drawn = np.take_along_axis(differences, generator.integers(0, seeds, (rows, seeds)), axis=1)
    stretched: Array = centre + math.sqrt(seeds / (seeds - 1)) * (drawn.mean(1) - centre)
    return stretched
