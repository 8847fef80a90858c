"""Calibration: whether a classifier that says 0.9 is right nine times of ten."""

from __future__ import annotations

from typing import Any

import numpy as np


def expected_calibration_error(logits: Any, labels: Any, num_bins: int = 15) -> float:
    """Compute the expected calibration error of a classifier: sum over bins of `n_b / n * |acc_b - conf_b|`.

    Examples are put into bins of equal width by the probability of the class they are given; acc_b is the share of
    them that is right, conf_b their mean probability.

    Args:
        logits: `(n, classes)`; not mutated.
        labels: `(n,)` class ids.
        num_bins: of equal width over [0, 1], >= 1. The value depends on it, so it is printed with it.

    Returns:
        0 (calibrated) to 1; NaN for no examples.

    Example:
        >>> sure_and_half_right = expected_calibration_error([[9.0, -9.0], [9.0, -9.0]], [0, 1])
        >>> round(sure_and_half_right, 3)
        0.5

    Source:
        Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, Eq. 3.
    """
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels)
    if len(truth) == 0:
        return float("nan")
    odds = np.exp(values - values.max(-1, keepdims=True))
    probabilities = odds / odds.sum(-1, keepdims=True)
    confidence, right = probabilities.max(-1), (probabilities.argmax(-1) == truth).astype(np.float64)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(truth))
