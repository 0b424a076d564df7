"""Compares the arms of a dataset in pairs: paired tests, the seeds that they need, wins and penalties."""

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.power import pairs_needed
from sslpl.report.statistics import Array, Interval, PairedDifference, holm, paired_difference, win_rate, win_share


class PairedTest(NamedTuple):
    """A paired test of the areas under the budget curve of two arms; the first has the higher mean over all seeds."""

    first: Arm
    second: Arm
    result: PairedDifference
    adjusted: float  # p of the t test after Holm's correction over the tests of the dataset
    needed: Interval  # seeds that give the t test 80% power, from d_z and the ends of its interval


def comparable(first: Arm, second: Arm) -> bool:
    """True if two arms share the protocol or the method, and the numbers of labels at which they were tested."""
    alike = first.method_name == second.method_name or first.protocol == second.protocol
    return alike and first.labeled_counts == second.labeled_counts


def paired_seeds(first: Arm, second: Arm) -> list[int]:
    """Returns the shared seeds of two comparable arms; none if they share fewer than two or are not comparable."""
    seeds = sorted(set(first.seeds) & set(second.seeds))
    return seeds if len(seeds) > 1 and comparable(first, second) else []


@cache
def paired_tests(comparison: DatasetComparison) -> list[PairedTest]:
    """Tests all pairs of comparable arms with at least two shared seeds; the smallest p comes first."""
    results = []
    for pair in combinations(comparison.arms, 2):
        if seeds := paired_seeds(*pair):
            areas = (arm.areas[arm.rows_of(seeds)].tolist() for arm in pair)
            results.append((*pair, paired_difference(*areas)))
    adjusted = holm([result.p for *_, result in results])
    needed = seeds_needed([result for *_, result in results])
    tests = [PairedTest(*result, p, seeds) for result, p, seeds in zip(results, adjusted, needed, strict=True)]
    return sorted(tests, key=lambda test: test.result.p)


def seeds_needed(results: list[PairedDifference]) -> list[Interval]:
    """Returns the seeds that would tell each pair apart with 80% power, if d_z and the ends of its interval were true.

    The upper end is infinite where the interval of d_z contains zero.
    """
    effects = np.array([[result.effect, result.effect_low, result.effect_high] for result in results]).reshape(-1, 3)
    value, low, high = pairs_needed(effects).T
    fewest, most = np.minimum(low, high), np.where(np.prod(effects[:, 1:], axis=1) > 0, np.maximum(low, high), math.inf)
    return [Interval(*map(float, row)) for row in zip(value, fewest, most, strict=True)]


def win_matrix(comparison: DatasetComparison) -> Array:
    """Returns the share of (seed, cycle) pairs in which each arm (row) has a higher accuracy than each other (column).

    A tie counts half; NaN if two arms are not comparable.
    """
    return pair_matrix(comparison, win_rate)


def penalty_matrix(comparison: DatasetComparison) -> Array:
    """Returns the share of cycles in which each arm (row) beats each other (column); NaN if not comparable."""
    return pair_matrix(comparison, win_share)


@cache
def pair_matrix(comparison: DatasetComparison, compare: Callable[[Array, Array], float]) -> Array:
    """Returns `compare` of the accuracies [seeds, cycles] of each arm (row) and each other (column).

    NaN if two arms are not comparable.
    """
    matrix = np.full((len(comparison.arms), len(comparison.arms)), math.nan)
    for (i, first), (j, second) in permutations(enumerate(comparison.arms), 2):
        if seeds := paired_seeds(first, second):
            matrix[i, j] = compare(*(arm.accuracies[arm.rows_of(seeds)] for arm in (first, second)))
    return matrix
