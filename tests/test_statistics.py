import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.special import nctdtrinc

from sslpl.report import statistics as s

# Student's sleep data (1908): hours gained under two drugs by the same ten patients; t = -4.0621, p = 0.002833.
SLEEP = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_interval_is_that_of_scipy(n):
    values = np.random.default_rng(n).normal(0.9, 0.01, n)
    found = s.estimate(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx((values.mean(), values.std(ddof=1), low, high, n))


def test_an_interval_by_hand():
    found = s.estimate([1.0, 2.0, 3.0])  # sd 1, t(0.975, 2) = 4.303
    assert (found.mean, found.std) == (2.0, 1.0)
    assert found.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_a_single_value_has_no_interval():
    found = s.estimate([0.5])
    assert found[:2] == (0.5, 0.0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_paired_agrees_with_the_textbook_and_with_scipy():
    found = s.paired_difference(*SLEEP)
    assert found.difference == pytest.approx(-1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found.effect == pytest.approx(-4.0621 / math.sqrt(10), abs=1e-4)
    assert found.p == pytest.approx(stats.ttest_rel(*SLEEP).pvalue)


def test_the_interval_of_the_effect_inverts_the_noncentral_t():
    found, n = s.paired_difference(*SLEEP), 10
    t = found.effect * math.sqrt(n)
    assert stats.nct.cdf(t, n - 1, found.effect_low * math.sqrt(n)) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(t, n - 1, found.effect_high * math.sqrt(n)) == pytest.approx(0.025, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_interval_of_a_very_large_effect_is_the_limit_of_the_noncentral_t(n):
    for t in (2000.0, -2000.0):
        exact = np.sort(nctdtrinc(n - 1, [0.975, 0.025], t)) / math.sqrt(n)
        assert s.effect_interval(t, n) == pytest.approx(tuple(exact), rel=1e-3)


def test_pairs_without_spread():
    assert s.paired_difference([1, 2, 3], [1, 2, 3])[:2] == (3, 0.0)
    assert s.paired_difference([1, 2, 3], [1, 2, 3]).p == 1
    assert s.paired_difference([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]).p == 0
    assert math.isnan(s.paired_difference([1.0], [2.0]).p)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_signed_rank_is_scipys_exact_test(n):
    for seed in range(5):
        difference = np.random.default_rng(seed).normal(0.3, 1, n)
        assert s.signed_rank(difference) == pytest.approx(stats.wilcoxon(difference, method="exact").pvalue)


@pytest.mark.parametrize("difference", [[1, 1, -1, 2], [3, 3, 3, -1, 0], [1, -1, 2, -2, 2, 5], [0, 0, 1]])
def test_signed_rank_with_ties_and_zeros_is_the_count_of_all_signs(difference):
    values = np.array([value for value in difference if value], dtype=float)
    ranks = stats.rankdata(np.abs(values))
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=len(values))])
    seen = ranks[values > 0].sum()
    p = min(1, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
    assert s.signed_rank(difference) == pytest.approx(p)


def test_signed_rank_cannot_be_below_its_floor():
    assert s.signed_rank([1, 2, 3]) == 0.25
    assert s.signed_rank([1, 2, 3, 4, 5]) == 0.0625
    assert s.signed_rank([0, 0]) == 1


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.6, 0.7]) == [1, 1]
    adjusted = s.holm([0.02, math.nan, 0.01])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.02)


def test_wins_counts_the_cycles_of_significant_t_tests():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.9, 0.01, (5, 40)), rng.normal(0.89, 0.01, (5, 40))
    expected = [stats.ttest_rel(first[:, k], second[:, k]) for k in range(40)]
    share = np.mean([test.pvalue < 0.05 and test.statistic > 0 for test in expected])
    assert 0 < share < 1
    assert s.win_share(first, second) == pytest.approx(share)
    assert s.win_share(first, first) == 0
    assert s.win_share(first + 0.1, first) == 1
    assert math.isnan(s.win_share(first[:1], second[:1]))


def test_five_seeds_win_above_the_critical_t_of_ash_et_al():
    difference = np.array([[2.0], [2.0], [2.0], [2.0], [2.0]]) + np.array([[1.0], [-1.0], [0.5], [-0.5], [0.0]])
    t = math.sqrt(5) * difference.mean() / difference.std(ddof=1)
    assert t > 2.776  # the two-sided 5% point with four degrees of freedom
    assert s.win_share(difference, np.zeros((5, 1))) == 1


def test_labels_to_reach_an_accuracy():
    curve = [(100, 0.5), (200, 0.7), (300, 0.6), (400, 0.9)]
    assert s.labels_to_reach(curve, 0.6) == pytest.approx(150)
    assert s.labels_to_reach(curve, 0.7) == pytest.approx(200)
    assert s.labels_to_reach(curve, 0.8) == pytest.approx(300 + 100 * 2 / 3)
    assert s.labels_to_reach(curve, 0.4) == 100
    assert math.isnan(s.labels_to_reach(curve, 0.95))


def test_mean_ranks_by_hand():
    scores = np.array([[0.9, 0.8, 0.7], [0.5, 0.6, 0.6]])
    assert s.mean_ranks(scores).tolist() == [2.0, 1.75, 2.25]


def test_balance_is_one_for_equal_classes_and_scipys_entropy_otherwise():
    counts = s.class_counts(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 3, 0, 0, 0, 1]), 3, 4)
    assert counts.tolist() == [[1, 1, 1, 1], [3, 1, 0, 0], [0, 0, 0, 0]]
    even, uneven, none = s.normalized_entropy(counts)
    assert even == pytest.approx(1)
    assert uneven == pytest.approx(stats.entropy([3, 1, 0, 0], base=4))
    assert math.isnan(none)
    assert s.normalized_entropy(np.array([5, 0])) == 0


def test_overlap_of_sets():
    assert s.jaccard_index(np.array([1, 2, 3]), np.array([3, 4])) == 0.25
    assert s.jaccard_index(np.array([1]), np.array([1])) == 1
    assert math.isnan(s.jaccard_index(np.array([], int), np.array([], int)))


def test_the_win_rate_by_hand():
    assert s.win_rate([[3.0, 1.0], [2.0, 5.0]], [[1.0, 2.0], [2.0, 4.0]]) == (2 + 0.5) / 4
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 30)).astype(float)
    assert s.win_rate(first, second) + s.win_rate(second, first) == pytest.approx(1)


def test_the_interval_of_a_ratio_holds_the_ratios_that_a_t_test_does_not_reject():
    rng = np.random.default_rng(1)
    second = rng.normal(2.0, 0.4, 8)
    first = 0.6 * second + rng.normal(0, 0.2, 8)
    found = s.ratio_of_means(first, second)
    assert found.value == pytest.approx(first.mean() / second.mean())
    assert found.low < found.value < found.high
    for end in (found.low, found.high):
        assert stats.ttest_1samp(first - end * second, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_a_ratio_without_a_clear_denominator():
    assert s.ratio_of_means([1.0], [2.0])[0] == 0.5
    for first, second in (([1.0], [2.0]), ([1.0, 2.0, 1.5], [3.0, -1.0, 0.5])):  # one pair, and a mean that may be zero
        assert math.isnan(s.ratio_of_means(first, second).low)
        assert math.isnan(s.ratio_of_means(first, second).high)
    assert math.isnan(s.ratio_of_means([1.0, 2.0], [-1.0, -3.0]).value)
    assert s.ratio_of_means([2.0, 2.1, 2.3], [2.0, 2.1, 2.3]) == pytest.approx((1, 1, 1))
