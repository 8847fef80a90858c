"""Calibration: whether a classifier that says 0.9 is right nine times of ten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NUM_BINS = 15

Bins = dict[str, list[Any]]
"""Of each bin `count`, `confidence` and `accuracy`; the latter two are None where the bin is empty."""


def expected_calibration_error(logits: Any, labels: Any, num_bins: int = NUM_BINS) -> float:
    """Compute the expected calibration error of a classifier: sum over bins of `n_b / n * |acc_b - conf_b|`.

    Examples are put into bins of equal width by the probability of the class they are given; acc_b is the share of
    them that is right, conf_b their mean probability.

    Args:
        logits: `(n, classes)`; not mutated. Log-probabilities are logits too.
        labels: `(n,)` class ids.
        num_bins: of equal width over [0, 1], >= 1. The value depends on it, so it is printed with it.

    Returns:
        0 (calibrated) to 1; NaN for no examples, or where a logit is no number.

    Example:
        >>> sure_and_half_right = expected_calibration_error([[9.0, -9.0], [9.0, -9.0]], [0, 1])
        >>> round(sure_and_half_right, 3)
        0.5

    Source:
        Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, Eq. 3.
    """
    found = _probabilities(logits)
    if found is None:
        return float("nan")
    bins, confidence, right = _sort_into_bins(found, labels, num_bins)
    gaps = np.bincount(bins, weights=right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(found))


def brier_score(logits: Any, labels: Any) -> float:
    """Compute the Brier score of a classifier: the mean over examples of `sum_k (p_k - [k is the label])^2`.

    Unlike the calibration error it needs no bins, and a model that always says the shares of the classes does not
    get 0: it rewards telling examples apart too.

    Args:
        logits: `(n, classes)`; not mutated.
        labels: `(n,)` class ids.

    Returns:
        0 (sure and right) to 2 (sure and wrong); NaN for no examples, or where a logit is no number.

    Example:
        >>> brier_score([[0.0, 0.0]], [1])
        0.5

    Source:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950, Eq. 2: summed over all classes, so
        of two classes it is twice the square of the error in one.
    """
    found = _probabilities(logits)
    if found is None:
        return float("nan")
    truth = np.eye(found.shape[-1])[np.asarray(labels).astype(int)]
    return float(((found - truth) ** 2).sum(-1).mean())


def reliability_bins(logits: Any, labels: Any, num_bins: int = NUM_BINS) -> Bins:
    """Sort examples by confidence, for a reliability diagram: the bins of `expected_calibration_error`.

    Args:
        logits: `(n, classes)`; not mutated.
        labels: `(n,)` class ids.
        num_bins: of equal width over [0, 1], >= 1.

    Returns:
        `count`, `confidence` (mean) and `accuracy` of each bin; all empty where a logit is no number.

    Example:
        >>> reliability_bins([[9.0, -9.0], [0.0, 0.1]], [0, 0], num_bins=2)["accuracy"]
        [None, 0.5]
    """
    found = _probabilities(logits)
    if found is None:
        return {"count": [0] * num_bins, "confidence": [None] * num_bins, "accuracy": [None] * num_bins}
    bins, confidence, right = _sort_into_bins(found, labels, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    return {
        "count": count.tolist(),
        "confidence": _means(np.bincount(bins, weights=confidence, minlength=num_bins), count),
        "accuracy": _means(np.bincount(bins, weights=right, minlength=num_bins), count),
    }


def measure_calibration(logits: Any, labels: Any) -> dict[str, float]:
    """Compute `ece` (15 bins) and `brier` of a classifier.

    Example:
        >>> measure_calibration([[0.0, 0.0]], [1])
        {'ece': 0.5, 'brier': 0.5}
    """
    return {"ece": expected_calibration_error(logits, labels), "brier": brier_score(logits, labels)}


def join_bins(several: Sequence[Mapping[str, Sequence[Any]]]) -> Bins:
    """Join the bins of several runs as if all their examples were one run's.

    Args:
        several: from `reliability_bins`, all of one number of bins.

    Example:
        >>> one = {"count": [1], "confidence": [1.0], "accuracy": [1.0]}
        >>> join_bins([one, {"count": [3], "confidence": [1.0], "accuracy": [0.0]}])["accuracy"]
        [0.25]
    """
    counts = np.asarray([bins["count"] for bins in several])
    joined: Bins = {"count": counts.sum(0).tolist()}
    for name in ("confidence", "accuracy"):
        values = np.asarray([[value or 0.0 for value in bins[name]] for bins in several])
        joined[name] = _means((counts * values).sum(0), counts.sum(0))
    return joined


def _probabilities(logits: Any) -> Any:
    """`(n, classes)` in float64; None where there is nothing, or something that is no number."""
    values = np.asarray(logits, dtype=np.float64)
    if len(values) == 0:
        return None
    highest = values.max(-1, keepdims=True)
    if not np.isfinite(highest).all():  # NaN passes through max
        return None
    odds = np.exp(values - highest)
    return odds / odds.sum(-1, keepdims=True)


def _sort_into_bins(probabilities: Any, labels: Any, num_bins: int) -> tuple[Any, Any, Any]:
    confidence = probabilities.max(-1)
    right = (probabilities.argmax(-1) == np.asarray(labels)).astype(np.float64)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return bins, confidence, right


def _means(sums: Any, counts: Any) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
