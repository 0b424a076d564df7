import math
from itertools import product

import numpy as np
import pytest

from sslpl.report.bootstrap import aggregate, interquartile_mean, resample


def test_the_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])) == 3.5  # of 2, 3, 4, 5
    assert interquartile_mean(np.array([[9.0, 1.0, 2.0], [3.0, 3.0, 0.0]])).tolist() == [4.0, 2.0]  # 3 / 4 is below one


def test_the_interquartile_mean_is_that_of_all_runs_on_all_datasets():
    """As Agarwal et al. define it: not the mean of means, so that an outlying dataset is cut off run by run."""
    easy, hard = np.array([0.9, 0.91, 0.92, 0.93]), np.array([0.1, 0.5, 0.6, 0.7])
    assert aggregate([easy, hard]).value == pytest.approx((0.6 + 0.7 + 0.9 + 0.91) / 4)


def test_seeds_are_drawn_within_their_dataset():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0])
    drawn = resample([first, second], 500)
    assert drawn.shape == (500, 5)
    assert set(np.unique(drawn[:, :3])) == set(first)
    assert set(np.unique(drawn[:, 3:])) == set(second)


def test_the_interval_is_that_of_all_resamples():
    """Two datasets of three seeds have 27 x 27 equally likely resamples, which can be listed."""
    strata = [np.array([0.5, 0.6, 0.9]), np.array([0.2, 0.25, 0.4])]
    every = [np.concatenate(pair) for pair in product(*(product(scores, repeat=3) for scores in strata))]
    exact = np.quantile(interquartile_mean(np.array(every)), [0.025, 0.975])
    found = aggregate(strata)
    assert (found.low, found.high) == pytest.approx(exact, abs=0.02)
    assert found.low < found.value < found.high


def test_the_interval_of_a_mean_agrees_with_its_standard_error():
    strata = [np.random.default_rng(k).normal(k, 1 + k, 40) for k in range(3)]
    found = aggregate(strata, lambda scores: scores.mean(axis=-1))
    error = (
        math.sqrt(sum(scores.var() / 40 for scores in strata)) / 3
    )  # drawn within datasets: their means do not count
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_same_runs_give_the_same_interval():
    strata = [np.random.default_rng(0).random(5), np.random.default_rng(1).random(5)]
    assert aggregate(strata) == aggregate(strata)


def test_one_seed_has_no_interval():
    found = aggregate([np.array([0.5, 0.6]), np.array([0.7])])
    assert found.value == pytest.approx(0.6)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
