import math

import numpy as np
import pytest
from scipy import stats

from sslpl.report.pairwise import seeds_needed
from sslpl.report.power import paired_power, pairs_needed
from sslpl.report.statistics import paired_difference


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (0.8, 15), (0.2, 199), (1.0, 10)])
def test_the_number_of_pairs_is_that_of_the_textbook(effect, n):
    """Cohen's small, medium and large effects: the numbers that G*Power gives for a two-sided paired t test."""
    assert pairs_needed([effect, -effect]).tolist() == [n, n]


@pytest.mark.parametrize(("effect", "n"), [(0.4, 5), (1.5, 5), (0.7, 20), (6.0, 2)])
def test_the_power_is_the_share_of_simulated_t_tests_that_reject(effect, n):
    difference = np.random.default_rng(n).normal(effect, 1, (40_000, n))
    rejected = stats.ttest_1samp(difference, 0, axis=1).pvalue < 0.05
    assert paired_power(effect, n) == pytest.approx(rejected.mean(), abs=0.008)  # three standard errors


def test_the_number_of_pairs_is_the_smallest_that_suffices():
    for effect in np.logspace(-2, 1.5, 60):
        (n,) = pairs_needed([effect])
        assert paired_power(min(effect, 20), n) >= 0.8
        assert n == 2 or paired_power(effect, n - 1) < 0.8


def test_no_effect_needs_infinitely_many_pairs_and_no_spread_two():
    found = pairs_needed([0.0, math.inf, math.nan])
    assert found[:2].tolist() == [math.inf, 2]
    assert math.isnan(found[2])


def test_the_range_of_seeds_comes_from_the_interval_of_the_effect():
    clear = paired_difference([3.0, 3.1, 3.5, 2.2, 2.9], [0.0] * 5)
    unclear = paired_difference([0.3, -0.2, 0.5, -0.1], [0.0] * 4)
    negative = paired_difference([0.0] * 5, [3.0, 3.1, 3.5, 2.2, 2.9])
    found, open_ended, mirrored = seeds_needed([clear, unclear, negative])
    assert found == tuple(pairs_needed([clear.effect, clear.effect_high, clear.effect_low]))
    assert mirrored == found
    assert open_ended.high == math.inf
    assert open_ended.low == pairs_needed([max(-unclear.effect_low, unclear.effect_high)])[0]
    assert open_ended.low < open_ended.value
    assert seeds_needed([]) == []
