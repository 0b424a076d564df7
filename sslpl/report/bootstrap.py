"""Aggregates scores over datasets: interquartile means with stratified bootstrap intervals (Agarwal et al. 2021)."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import trim_mean

from sslpl.report.statistics import LEVEL, Array, Interval

RESAMPLES = 2000
SEED = 0  # fixed: the same runs give the same report


def interquartile_mean(scores: Array) -> Array:
    """Returns the mean of the middle half of the scores along the last axis: a quarter is cut off at either end."""
    return np.asarray(trim_mean(scores, 0.25, axis=-1))


def resample(strata: Sequence[Array], resamples: int = RESAMPLES) -> Array:
    """Returns bootstrap samples [resamples, scores]: the scores of each stratum are drawn from it with replacement."""
    generator = np.random.default_rng(SEED)
    drawn = (scores[generator.integers(len(scores), size=(resamples, len(scores)))] for scores in strata)
    return np.concatenate(list(drawn), axis=1)


def aggregate(strata: Sequence[Array], statistic: Callable[[Array], Array] = interquartile_mean) -> Interval:
    """Returns a statistic of all scores and its 95% percentile interval by the stratified bootstrap.

    Strata are datasets, the scores of each those of its seeds. No interval if a stratum has a single score, which
    resampling cannot vary.
    """
    value = float(statistic(np.concatenate(list(strata))))
    if min(map(len, strata)) < 2:
        return Interval(value)
    low, high = np.quantile(statistic(resample(strata)), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))
