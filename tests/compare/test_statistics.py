"""Means, paired tests and Holm, against scipy and by hand; and what few or equal values give."""

import math

import numpy as np
import pytest
from scipy import stats

from rmlora.compare.mcnemar import mcnemar
from rmlora.compare.statistics import holm, pair_by_seed, paired_p_value, summarize, t_interval


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_the_paired_test_is_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    expected = stats.ttest_rel(a, b)
    assert paired_p_value(a - b) == pytest.approx(expected.pvalue)
    interval, scipys = t_interval(a - b, 0.9), expected.confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((scipys.low, scipys.high))
    assert interval.contains_zero == (expected.pvalue > 0.1)


def test_a_summary_is_numpys() -> None:
    values = [0.5, 0.7, 0.9]
    found = summarize(values)
    assert (found.mean, found.spread, found.n) == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))


def test_one_run_has_no_spread_and_no_test() -> None:
    assert math.isnan(summarize([0.5]).spread)
    assert math.isnan(paired_p_value([0.5]))
    interval = t_interval([0.5])
    assert (interval.estimate, interval.contains_zero, interval.is_known) == (0.5, True, False)


def test_no_run_at_all_is_not_a_number() -> None:
    assert math.isnan(summarize([]).mean)
    assert math.isnan(t_interval([]).estimate)
    assert t_interval([]).contains_zero


def test_equal_vectors_do_not_differ() -> None:
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert (t_interval([0.0, 0.0]).low, t_interval([0.0, 0.0]).high) == (0.0, 0.0)
    assert t_interval([0.0, 0.0]).contains_zero


@pytest.mark.parametrize("n", [2, 3, 6])
def test_equal_differences_are_no_certainty(n: int) -> None:
    # One example of 277 on every seed: the t statistic would be infinite. By signs it is a coin thrown n times.
    differences = [238 / 277 - 237 / 277] * (n - 1) + [1 / 277]
    assert paired_p_value(differences) == pytest.approx(stats.binomtest(n, n).pvalue)
    assert t_interval(differences).contains_zero


def test_only_common_seeds_are_paired() -> None:
    seeds, differences = pair_by_seed({3: 1.0, 1: 0.5, 7: 0.9}, {1: 0.25, 3: 0.5, 9: 0.0})
    assert seeds == (1, 3)
    assert differences.tolist() == [0.25, 0.5]


def test_the_t_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = sum(t_interval(values - 0.3).contains_zero for values in rng.normal(0.3, 1, (1000, 3)))
    assert 0.93 < hits / 1000 < 0.97


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.2]) == pytest.approx([0.04, 0.06, 0.06, 0.2])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_decides_as_its_stepwise_rule() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.random(6) ** 4
        order, rejected = np.argsort(p), np.zeros(6, dtype=bool)
        for k, i in enumerate(order):
            if p[i] > 0.05 / (6 - k):
                break
            rejected[i] = True
        assert [value <= 0.05 for value in holm(p.tolist())] == rejected.tolist()


def test_what_could_not_be_tested_does_not_count() -> None:
    adjusted = holm([0.02, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


def test_holm_is_wrong_in_few_families() -> None:
    rng = np.random.default_rng(2)
    wrong = sum(min(holm(rng.random(5).tolist())) <= 0.05 for _ in range(1000))
    assert 0.03 < wrong / 1000 < 0.07


def test_mcnemar_is_the_exact_binomial() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(277) < 0.87, rng.random(277) < 0.85
    found = mcnemar(a, b)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    assert (found.wins, found.losses) == (wins, losses)
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_of_equal_and_of_no_answers() -> None:
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert math.isnan(mcnemar([], []).p_value)
    with pytest.raises(ValueError, match="2 examples on one side, 1 on the other"):
        mcnemar([True, False], [True])
