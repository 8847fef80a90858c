"""Metrics as functions of sums over examples, so that a resample of the examples costs one product of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmlora.compare.statistics import Array

# A resample needs this many values per example: two per class and one more; beyond it, memory says no.
_MAX_CLASSES = 512


@dataclass(frozen=True)
class Score:
    """One run's metric, ready to be computed again on any weighting of its examples.

    Attributes:
        features: `(n, k)`; what each example adds to the sums.
        combine: sums `(..., k)` and number of examples to the metric `(...)`.
    """

    features: Array
    combine: Callable[[Array, int], Array]

    def __len__(self) -> int:
        return len(self.features)

    def value(self) -> float:
        """The metric on the examples as they are."""
        return float(self.combine(self.features.sum(0), len(self)))

    def resampled(self, counts: Array) -> Array:
        """The metric on resamples, `(resamples,)`.

        Args:
            counts: `(resamples, n)`; how often each example is drawn.
        """
        return self.combine(counts @ self.features, len(self))


def score_of(metric: str, outputs: Array, labels: Array) -> Score | None:
    """Build the score of one run's predictions.

    Args:
        metric: accuracy, f1, matthews, pearson, spearman or log_likelihood.
        outputs: `(n, classes)` logits, or `(n,)` values; for log_likelihood the negative one per token.
        labels: `(n,)` class ids or numbers; for log_likelihood the number of tokens.

    Returns:
        None for a metric that is no function of sums over examples, or has too many classes for it. The ranks of
        Spearman's correlation are those of the whole split, not of each resample.

    Example:
        >>> import numpy as np
        >>> score = score_of("accuracy", np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0.0, 0.0]))
        >>> score.value()
        0.5
    """
    if metric == "log_likelihood":
        return Score(np.stack([-outputs * labels, labels], axis=1), lambda sums, n: sums[..., 0] / sums[..., 1])
    if metric in ("pearson", "spearman"):
        return _correlation(outputs.reshape(len(labels)), labels, by_rank=metric == "spearman")
    if outputs.ndim != 2 or metric not in ("accuracy", "f1", "matthews"):
        return None
    guess, truth = outputs.argmax(-1), labels.astype(np.int64)
    if metric == "accuracy":
        return Score((guess == truth).astype(np.float64)[:, None], lambda sums, n: sums[..., 0] / n)
    if metric == "f1":
        return Score(_stack((guess == 1) & (truth == 1), guess == 1, truth == 1), _f1)
    if outputs.shape[1] > _MAX_CLASSES:
        return None
    eye = np.eye(outputs.shape[1])
    return Score(np.concatenate([(guess == truth).astype(np.float64)[:, None], eye[guess], eye[truth]], 1), _matthews)


def mean_score(values: Array) -> Score:
    """Build the score of a metric that is a mean over examples, from its value for each, `(n,)`.

    Example:
        >>> mean_score(np.array([1.0, 0.0])).value()
        0.5
    """
    return Score(values[:, None], lambda sums, n: sums[..., 0] / n)


def _stack(*columns: NDArray[np.bool_]) -> Array:
    return np.stack([column.astype(np.float64) for column in columns], axis=1)


def _divide(above: Array, below: Array) -> Array:
    """`above / below`, with 0 / 0 = 0 as the metrics have it."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _f1(sums: Array, n: int) -> Array:
    return _divide(2 * sums[..., 0], np.asarray(sums[..., 1] + sums[..., 2]))


def _matthews(sums: Array, n: int) -> Array:
    """Gorodkin's R_K: (c n - p.t) / sqrt((n^2 - p.p)(n^2 - t.t)), with counts p guessed and t true by class."""
    half = (sums.shape[-1] - 1) // 2
    right, guessed, true = sums[..., 0], sums[..., 1 : 1 + half], sums[..., 1 + half :]
    above = right * n - (guessed * true).sum(-1)
    below = (n**2 - (guessed**2).sum(-1)) * (n**2 - (true**2).sum(-1))
    return _divide(above, np.sqrt(np.maximum(below, 0.0)))


def _correlation(guess: Array, truth: Array, by_rank: bool) -> Score:
    from scipy.stats import rankdata

    x, y = (rankdata(guess), rankdata(truth)) if by_rank else (guess, truth)
    x, y = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y  # for precision: the metric does not care
    return Score(np.stack([x, y, x * x, y * y, x * y], axis=1), _pearson)


def _pearson(sums: Array, n: int) -> Array:
    x, y, xx, yy, xy = (sums[..., i] / max(n, 1) for i in range(5))
    return _divide(np.asarray(xy - x * y), np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0.0)))
