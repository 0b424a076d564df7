"""Computes the statistics of a comparison with pure functions of numbers; NaN where a result is not defined."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import chdtri, nctdtrinc, stdtrit

LEVEL = 0.95
SIGNIFICANT = 0.05
LARGE_T = 1000.0
Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class Estimate(NamedTuple):
    """The mean of n independent values, their standard deviation (n - 1) and the 95% interval of the mean."""

    mean: float
    std: float  # 0 for a single value
    low: float  # NaN for a single value, like `high`
    high: float
    n: int


class Interval(NamedTuple):
    """A value and its 95% interval; NaN where the value or an end is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan


class PairedDifference(NamedTuple):
    """The differences of n pairs, first minus second: their mean, its tests and its effect size."""

    n: int
    difference: float  # mean
    low: float  # 95% interval of the mean, Student t
    high: float
    p: float  # two-sided paired t test
    wilcoxon: float  # exact two-sided p of the signed-rank test
    effect: float  # Cohen's d_z: the mean difference divided by its standard deviation
    effect_low: float  # 95% interval of d_z, noncentral t
    effect_high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Estimates the mean of independent values with its 95% interval by Student's t."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, 0.0, math.nan, math.nan, 1)
    std = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * std / math.sqrt(n)
    return Estimate(mean, std, mean - half, mean + half, n)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compares values in pairs, such as two methods with the same seeds; NaN with fewer than two pairs.

    Decide by the t test: with n pairs the signed-rank test cannot give less than 2 / 2^n, which is 0.25 with three
    seeds and 0.06 with five, whatever the values are.
    """
    difference = np.subtract(first, second).astype(float)
    mean = estimate(difference.tolist())
    if mean.n < 2:
        return PairedDifference(mean.n, mean.mean, *[math.nan] * 7)
    t, p = t_test(difference[:, None])
    effect = float(t[0]) / math.sqrt(mean.n)
    interval = effect_interval(float(t[0]), mean.n)
    return PairedDifference(
        mean.n, mean.mean, mean.low, mean.high, float(p[0]), signed_rank(difference), effect, *interval
    )


def t_test(difference: Array) -> tuple[Array, Array]:
    """Returns t and two-sided p of paired t tests, one for each column of differences [n, columns], n above 1.

    Without any spread, t is infinite and p is 0; if all differences are zero, t is 0 and p is 1.
    """
    n = len(difference)
    mean, error = difference.mean(axis=0), difference.std(axis=0, ddof=1) / math.sqrt(n)
    exact = error <= 1e-12 * np.maximum(1.0, np.abs(mean))  # equal but for rounding
    t = np.divide(mean, error, out=np.zeros_like(mean), where=~exact)
    t = np.where(exact & (np.abs(mean) > 1e-12), np.copysign(np.inf, mean), t)
    return t, 2 * stats.t.sf(np.abs(t), n - 1)


def effect_interval(t: float, n: int) -> tuple[float, float]:
    """Returns the 95% interval of d_z for the t of n pairs by the noncentral t (Cumming and Finch 2001).

    For large t, where computing it takes seconds, by its limit: a noncentrality divided by a chi variable.
    """
    if not math.isfinite(t):
        return t, t
    tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if abs(t) > LARGE_T:
        ends = np.sort(t * np.sqrt(chdtri(n - 1, 1 - tails) / (n - 1)))
    else:
        ends = nctdtrinc(n - 1, tails[::-1], t)
    return float(ends[0]) / math.sqrt(n), float(ends[1]) / math.sqrt(n)


def signed_rank(difference: ArrayLike) -> float:
    """Returns the exact two-sided p of Wilcoxon's signed-rank test; zeros are dropped, ties get their mean rank.

    The null distribution counts, rank by rank, the assignments of signs that give each sum of positive ranks. Ranks are
    doubled to make them integers.
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
    """Adjusts the p values of several tests to control the family-wise error rate (Holm 1979); NaN stays NaN."""
    values = np.asarray(p, dtype=float)
    order = [int(k) for k in np.argsort(values) if not math.isnan(values[k])]
    adjusted, largest = np.full(len(values), math.nan), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(values[k])))
        adjusted[k] = largest
    return [float(value) for value in adjusted]


def win_share(first: Array, second: Array) -> float:
    """Returns the share of cycles that the first wins by a two-sided paired t test at 5% (Ash et al., ICLR 2020).

    Both arguments are accuracies [seeds, cycles] of the same seeds. NaN with a single seed.
    """
    if len(first) < 2:
        return math.nan
    t, p = t_test(np.subtract(first, second))
    return float(np.mean((p < SIGNIFICANT) & (t > 0)))


def win_rate(first: ArrayLike, second: ArrayLike) -> float:
    """Returns the share of pairs in which the first value is higher; a tie counts half."""
    return float(np.mean(np.sign(np.subtract(first, second)) / 2 + 0.5))


def ratio_of_means(first: ArrayLike, second: ArrayLike) -> Interval:
    """Returns the ratio of the means of n pairs, above a positive second mean, by Fieller's theorem (Fieller 1954).

    The interval holds the ratios r for which a paired t test of `first` and `r * second` does not reject. Its ends are
    NaN with a single pair, and where the interval is unbounded because the second mean is not clearly above zero.
    """
    pairs = np.stack([np.asarray(first, float), np.asarray(second, float)])
    n, (a, b) = pairs.shape[1], pairs.mean(axis=1)
    if b <= 0:
        return Interval(math.nan)
    if n < 2:
        return Interval(float(a / b))
    (var_a, cov), (_, var_b) = np.cov(pairs) / n * stdtrit(n - 1, 0.5 + LEVEL / 2) ** 2
    square, half, rest = b**2 - var_b, a * b - cov, a**2 - var_a  # square r^2 - 2 half r + rest = 0
    if square <= 0:
        return Interval(float(a / b))
    root = math.sqrt(max(0.0, half**2 - square * rest))
    return Interval(float(a / b), float((half - root) / square), float((half + root) / square))


def labels_to_reach(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Returns the labels at which a curve of (labels, accuracy), linear between points, first reaches the target.

    NaN if it never does. A curve that starts at or above the target gives its first number of labels.
    """
    if curve and curve[0][1] >= target:
        return float(curve[0][0])
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= target:
            return float(x0 + (target - y0) / (y1 - y0) * (x1 - x0))
    return math.nan


def mean_ranks(scores: Array) -> Array:
    """Returns each method's mean rank [methods] for scores [datasets, methods]; rank 1 is the highest score."""
    return np.asarray(stats.rankdata(-scores, axis=1).mean(axis=0), dtype=float)


def class_counts(cycle: Integers, label: Integers, cycles: int, classes: int) -> Integers:
    """Counts the images of each class that were labeled for each cycle: [cycles, classes]."""
    return np.bincount(cycle * classes + label, minlength=cycles * classes).reshape(cycles, classes)


def normalized_entropy(counts: Integers) -> Array:
    """Returns the entropy of counts [..., classes] divided by its maximum: 1 for equal counts, 0 for a single class."""
    total = counts.sum(axis=-1)
    p = counts / np.maximum(total, 1)[..., None]
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) / math.log(max(counts.shape[-1], 2))
    return np.asarray(np.where(total > 0, entropy, math.nan))


def jaccard_index(first: Integers, second: Integers) -> float:
    """Returns Jaccard's index of two sets of distinct positions; NaN if both are empty."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else math.nan
