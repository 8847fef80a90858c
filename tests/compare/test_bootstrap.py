"""Resampling against scipy's bootstrap and against the metrics themselves; coverage; degenerate inputs."""

import math

import numpy as np
import pytest
from scipy import stats

from rmlora.compare.bootstrap import bootstrap_examples, bootstrap_seeds_and_examples
from rmlora.compare.effect import describe_effect, points_per_unit
from rmlora.compare.scores import Score, score_of
from rmlora.compare.statistics import Interval
from rmlora.tasks.metrics import measure


def accuracy(correct: np.ndarray) -> Score:
    logits = np.eye(2)[correct.astype(int)]
    score = score_of("accuracy", logits, np.ones(len(correct)))
    assert score is not None
    return score


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson", "spearman"])
def test_a_score_is_its_metric_and_so_is_a_resample(metric: str) -> None:
    rng = np.random.default_rng(0)
    if metric in ("pearson", "spearman"):
        outputs = rng.normal(size=80)
        labels, task = outputs + rng.normal(size=80), "text-regression"
    else:
        outputs, labels, task = rng.normal(size=(80, 2)), rng.integers(2, size=80).astype(float), "text-classification"
    score = score_of(metric, outputs, labels)
    assert score is not None
    assert score.value() == pytest.approx(measure(outputs, labels, task)[metric])
    if metric != "spearman":  # whose ranks are not taken anew
        drawn = rng.integers(80, size=80)
        counts = np.bincount(drawn, minlength=80).astype(float)
        assert score.resampled(counts[None])[0] == pytest.approx(measure(outputs[drawn], labels[drawn], task)[metric])


def test_matthews_of_many_classes_is_the_metric() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(90, 7)), rng.integers(7, size=90).astype(float)
    score = score_of("matthews", outputs, labels)
    assert score is not None
    assert score.value() == pytest.approx(measure(outputs, labels, "image-classification")["matthews"])


def test_a_likelihood_weighs_examples_by_their_tokens() -> None:
    per_token, tokens = np.array([1.0, 3.0]), np.array([3.0, 1.0])
    score = score_of("log_likelihood", per_token, tokens)
    assert score is not None
    assert score.value() == pytest.approx(-(3.0 + 3.0) / 4)
    assert score.resampled(np.array([[0.0, 2.0]]))[0] == pytest.approx(-3.0)


def test_metrics_that_are_no_sums_have_no_score() -> None:
    assert score_of("rouge_l", np.zeros((3, 2)), np.zeros(3)) is None
    assert score_of("accuracy", np.zeros(3), np.zeros(3)) is None


def test_the_paired_bootstrap_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.7
    found = bootstrap_examples(accuracy(a), accuracy(b), num_resamples=4000).interval
    expected = stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y: x.mean() - y.mean(),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.estimate == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = accuracy(np.arange(50) % 3 > 0), accuracy(np.arange(50) % 2 > 0)
    assert bootstrap_examples(a, b, seed=5) == bootstrap_examples(a, b, seed=5)
    assert bootstrap_examples(a, b, seed=5) != bootstrap_examples(a, b, seed=6)


def test_equal_runs_do_not_differ() -> None:
    score = accuracy(np.arange(40) % 4 > 0)
    found = bootstrap_seeds_and_examples([score, score], [score, score])
    assert (found.interval.low, found.interval.high, found.p_value) == (0.0, 0.0, 1.0)


def test_no_examples_say_nothing() -> None:
    found = bootstrap_examples(accuracy(np.zeros(0)), accuracy(np.zeros(0)))
    assert math.isnan(found.p_value)
    assert found.interval.contains_zero
    assert not found.interval.is_known


def test_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="same examples"):
        bootstrap_examples(accuracy(np.zeros(3)), accuracy(np.zeros(4)))


def test_one_seed_leaves_the_bootstrap_over_examples() -> None:
    a, b = accuracy(np.arange(90) % 5 > 0), accuracy(np.arange(90) % 4 > 0)
    assert bootstrap_seeds_and_examples([a], [b]) == bootstrap_examples(a, b)


def runs(rng: np.random.Generator, seeds: int, n: int, gain: float) -> tuple[list[Score], list[Score]]:
    """A method better by `gain` on average, by more on some seeds and examples than on others."""
    hard = rng.normal(0, 1, n)
    sides = []
    for mean in (gain, 0.0):
        skill = mean + rng.normal(0, 0.02, (seeds, 1))
        noise = rng.random((seeds, n))
        sides.append([accuracy(row) for row in noise < np.clip(0.7 + skill + 0.1 * hard, 0, 1)])
    return sides[0], sides[1]


def test_resampling_both_covers_where_resampling_examples_alone_does_not() -> None:
    rng = np.random.default_rng(4)
    both = alone = 0
    for _ in range(150):
        method, baseline = runs(rng, seeds=6, n=400, gain=0.05)
        found = bootstrap_seeds_and_examples(method, baseline, num_resamples=300).interval
        both += found.low <= 0.05 <= found.high
        one = bootstrap_examples(method[0], baseline[0], num_resamples=300).interval
        alone += one.low <= 0.05 <= one.high
    assert both / 150 > 0.87
    assert both >= alone


def test_an_effect_is_said_in_examples() -> None:
    said = describe_effect(Interval(4 / 277, -0.021, 0.05), "accuracy", 277)
    assert said == "+1.4 = 4 of 277 examples; 95% interval -2.1 to +5.0 includes 0"
    assert "of 71 examples" in describe_effect(Interval(-1 / 71, -0.05, -0.001), "accuracy", 71)
    assert "excludes 0" in describe_effect(Interval(-1 / 71, -0.05, -0.001), "accuracy", 71)
    assert "2.5 of 1000 examples" in describe_effect(Interval(0.0025, 0, 1), "accuracy", 1000)


def test_an_effect_without_interval_or_runs_says_so() -> None:
    assert describe_effect(Interval(0.01, -math.inf, math.inf), "f1", 50) == "+1.00; too few runs for an interval"
    assert "no run" in describe_effect(Interval(math.nan, -math.inf, math.inf), "f1", 50)


def test_points_stay_points() -> None:
    assert points_per_unit("exact_match", [87.9, 0.4]) == 1.0
    assert describe_effect(Interval(0.5, 0.1, 0.9), "exact_match", 400, scale=1.0).startswith("+0.50 = 2 of 400")
