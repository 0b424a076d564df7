"""The statistics of a comparison: pure functions on numbers, NaN where a number is not defined."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import nctdtrinc

LEVEL = 0.95
SIGNIFICANT = 0.05
Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class Estimate(NamedTuple):
    """A mean over n values with their standard deviation (n - 1) and the 95% interval of the mean."""

    mean: float
    std: float  # 0 for a single value
    low: float  # NaN for a single value, like `high`
    high: float
    n: int


class Paired(NamedTuple):
    """Two methods over the seeds that they share, the second subtracted from the first."""

    n: int
    difference: float
    low: float  # 95% interval of the difference, Student t
    high: float
    p: float  # two-sided paired t test
    wilcoxon: float  # exact two-sided p of the signed-rank test
    effect: float  # Cohen's d_z: the mean difference over its standard deviation
    effect_low: float  # 95% interval of d_z, noncentral t
    effect_high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its Student t interval."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, 0.0, math.nan, math.nan, 1)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(mean, std, mean - half, mean + half, n)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compares values that belong together in pairs, as two methods with the same seeds do; NaN with fewer than two.

    The t test is the one to decide by: with n pairs the signed-rank test cannot give less than 2 / 2^n, which is 0.25
    with three seeds and 0.06 with five, whatever the values are.
    """
    difference = np.subtract(first, second).astype(float)
    d = estimate(difference.tolist())
    if d.n < 2:
        return Paired(d.n, d.mean, *[math.nan] * 7)
    t, p = t_test(difference[:, None])
    effect = float(t[0]) / math.sqrt(d.n)
    low, high = effect_interval(float(t[0]), d.n)
    return Paired(d.n, d.mean, d.low, d.high, float(p[0]), signed_rank(difference), effect, low, high)


def t_test(difference: Array) -> tuple[Array, Array]:
    """t and the two-sided p of paired t tests, one for each column of differences [n, columns], n above 1.

    Without any spread, t is infinite and p 0; without any difference either, t is 0 and p 1.
    """
    n = len(difference)
    mean, error = difference.mean(axis=0), difference.std(axis=0, ddof=1) / math.sqrt(n)
    exact = error <= 1e-12 * np.maximum(1.0, np.abs(mean))  # equal but for rounding
    t = np.divide(mean, error, out=np.zeros_like(mean), where=~exact)
    t = np.where(exact & (np.abs(mean) > 1e-12), np.copysign(np.inf, mean), t)
    return t, 2 * stats.t.sf(np.abs(t), n - 1)


def effect_interval(t: float, n: int) -> tuple[float, float]:
    """The 95% interval of d_z from a paired t of n pairs, by the noncentral t distribution (Cumming and Finch 2001)."""
    if not math.isfinite(t):
        return t, t
    tail = (1 - LEVEL) / 2
    low, high = nctdtrinc(n - 1, np.array([1 - tail, tail]), t) / math.sqrt(n)
    return float(low), float(high)


def signed_rank(difference: ArrayLike) -> float:
    """The exact two-sided p of Wilcoxon's signed-rank test, zeros left out, ties at their mean rank.

    The null distribution counts, rank by rank, in how many ways the signs give each sum; ranks are doubled to be whole.
    """
    values = np.asarray(difference, dtype=float)
    values = values[values != 0]
    if not len(values):
        return 1.0
    ranks = np.rint(2 * stats.rankdata(np.abs(values).round(12))).astype(int)
    ways = np.ones(1)
    for rank in ranks:
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
    positive = int(ranks[values > 0].sum())
    tail = min(ways[: positive + 1].sum(), ways[positive:].sum()) / ways.sum()
    return float(min(1.0, 2 * tail))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts the p values of several tests so that the chance of any false one is kept (Holm 1979); NaN stays out."""
    values = np.asarray(p, dtype=float)
    order = [int(k) for k in np.argsort(values) if not math.isnan(values[k])]
    adjusted, largest = np.full(len(values), math.nan), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(values[k])))
        adjusted[k] = largest
    return [float(value) for value in adjusted]


def wins(first: Array, second: Array) -> float:
    """The share of cycles in which the first is better by a two-sided paired t test at 5% (Ash et al., ICLR 2020).

    Both hold accuracies [seeds, cycles] of the same seeds. NaN with a single seed.
    """
    if len(first) < 2:
        return math.nan
    t, p = t_test(np.subtract(first, second))
    return float(np.mean((p < SIGNIFICANT) & (t > 0)))


def labels_to_reach(labeled: Sequence[float], accuracy: Sequence[float], target: float) -> float:
    """The labels at which a curve, straight between its points, first reaches an accuracy; NaN if it never does.

    A curve that begins above gives its first number of labels: no fewer were tried.
    """
    for k, value in enumerate(accuracy):
        if value >= target:
            if k == 0:
                return float(labeled[0])
            share = (target - accuracy[k - 1]) / (value - accuracy[k - 1])
            return float(labeled[k - 1] + share * (labeled[k] - labeled[k - 1]))
    return math.nan


def mean_ranks(scores: Array) -> Array:
    """The mean rank of each method [methods] over datasets, from scores [datasets, methods]; 1 is the highest."""
    return np.asarray(stats.rankdata(-scores, axis=1).mean(axis=0), dtype=float)


def class_counts(cycle: Integers, label: Integers, cycles: int, classes: int) -> Integers:
    """How many images of each class were labeled for each cycle: [cycles, classes]."""
    return np.bincount(cycle * classes + label, minlength=cycles * classes).reshape(cycles, classes)


def balance(counts: Integers) -> Array:
    """The entropy of class counts [..., classes] over its maximum: 1 if all classes are equal, 0 for a single one."""
    total = counts.sum(axis=-1)
    p = counts / np.maximum(total, 1)[..., None]
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) / math.log(max(counts.shape[-1], 2))
    return np.asarray(np.where(total > 0, entropy, math.nan))


def overlap(first: Integers, second: Integers) -> float:
    """Jaccard's index of two sets of distinct positions; NaN if both are empty."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else math.nan
