import math

import numpy as np
import pytest

from rmlora.tasks.calibration import expected_calibration_error


def by_loop(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """The definition, bin by bin."""
    odds = np.exp(logits)
    probabilities = odds / odds.sum(1, keepdims=True)
    confidence, guess = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs((guess == labels)[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_its_definition(bins: int) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 5)), rng.integers(5, size=200)
    assert expected_calibration_error(logits, labels, bins) == pytest.approx(by_loop(logits, labels, bins))


def test_a_model_drawn_from_its_own_probabilities_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 3))
    odds = np.exp(logits)
    edges = (odds / odds.sum(1, keepdims=True)).cumsum(1)
    labels = (rng.random((20000, 1)) > edges).sum(1)
    assert expected_calibration_error(logits, labels) < 0.02


def test_nothing_is_calibrated_on_nothing() -> None:
    assert math.isnan(expected_calibration_error(np.zeros((0, 2)), np.zeros(0)))


def test_huge_logits_do_not_overflow() -> None:
    assert expected_calibration_error([[1e4, 0.0]], [0]) == 0.0
