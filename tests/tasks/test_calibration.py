import math

import numpy as np
import pytest

from rmlora.tasks.calibration import brier_score, expected_calibration_error, join_bins, reliability_bins


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


def test_what_diverged_has_no_calibration_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for broken in (math.nan, math.inf, -math.inf):
        logits = np.full((3, 2), broken)
        assert math.isnan(expected_calibration_error(logits, [0, 1, 0]))
        assert math.isnan(brier_score(logits, [0, 1, 0]))
        assert sum(reliability_bins(logits, [0, 1, 0])["count"]) == 0
    assert not recwarn.list


def test_a_class_that_is_out_of_the_question_is_no_divergence() -> None:
    assert brier_score([[0.0, -math.inf]], [0]) == 0.0


def test_the_brier_score_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(4, size=50)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        odds = [math.exp(value) for value in row]
        total += sum((odd / sum(odds) - (k == label)) ** 2 for k, odd in enumerate(odds))
    assert brier_score(logits, labels) == pytest.approx(total / 50)
    assert brier_score([[50.0, 0.0]], [1]) == pytest.approx(2.0)


def test_the_bins_of_the_diagram_are_those_of_the_error() -> None:
    rng = np.random.default_rng(2)
    logits, labels = 3 * rng.normal(size=(300, 3)), rng.integers(3, size=300)
    bins = reliability_bins(logits, labels)
    gaps = [n * abs(a - c) for n, a, c in zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True) if n]
    assert sum(bins["count"]) == 300
    assert sum(gaps) / 300 == pytest.approx(expected_calibration_error(logits, labels))


def test_bins_of_two_runs_join_to_the_bins_of_all_their_examples() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(80, 3)), rng.integers(3, size=80)
    joined = join_bins([reliability_bins(logits[:30], labels[:30]), reliability_bins(logits[30:], labels[30:])])
    whole = reliability_bins(logits, labels)
    assert joined["count"] == whole["count"]
    for name in ("confidence", "accuracy"):
        assert [v for v in joined[name] if v is not None] == pytest.approx([v for v in whole[name] if v is not None])
