"""Compares arms in pairs (paired tests, penalty matrix) and ranks methods over datasets."""

import math
from collections.abc import Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from sslpl.recording.run_tables import aubc
from sslpl.report.comparison import Arm, Comparisons, DatasetComparison, area
from sslpl.report.statistics import Array, PairedDifference, holm, mean_ranks, paired_difference, win_share


class PairedTest(NamedTuple):
    """A paired test of the areas under the budget curve of two arms; the first has the higher mean over all seeds."""

    first: Arm
    second: Arm
    result: PairedDifference
    adjusted: float  # p of the t test after Holm's correction over the tests of the dataset


class MethodRanks(NamedTuple):
    """The ranks by mean area under the budget curve of the methods that all datasets have; 1 is best."""

    methods: list[str]
    by_dataset: Array  # [datasets, methods]
    mean: Array  # [methods]


def comparable(first: Arm, second: Arm) -> bool:
    """True if two arms share the protocol or the method, and the numbers of labels at which they were tested."""
    alike = first.runs[0].protocol == second.runs[0].protocol or first.method_name == second.method_name
    return alike and first.labeled_counts == second.labeled_counts


def paired_seeds(first: Arm, second: Arm) -> list[int]:
    """Returns the shared seeds of two comparable arms; none if they share fewer than two or are not comparable."""
    seeds = sorted(set(first.seeds) & set(second.seeds))
    return seeds if len(seeds) > 1 and comparable(first, second) else []


def paired_tests(comparison: DatasetComparison) -> list[PairedTest]:
    """Tests all pairs of comparable arms with at least two shared seeds; the smallest p comes first."""
    results = []
    for pair in combinations(comparison.arms, 2):
        if seeds := paired_seeds(*pair):
            areas = ([aubc(run.rows) for run in arm.runs if run.seed in seeds] for arm in pair)
            results.append((*pair, paired_difference(*areas)))
    adjusted = holm([result.p for *_, result in results])
    tests = [PairedTest(*result, p) for result, p in zip(results, adjusted, strict=True)]
    return sorted(tests, key=lambda test: test.result.p)


def accuracies(arm: Arm, seeds: Sequence[int]) -> Array:
    """Returns test accuracies [seeds, cycles] at the numbers of labels that the arm's runs share."""
    by_labels = [{row["labeled"]: row["test_accuracy"] for row in run.rows} for run in arm.runs if run.seed in seeds]
    return np.array([[accuracy[labeled] for labeled in arm.labeled_counts] for accuracy in by_labels])


def penalty_matrix(comparison: DatasetComparison) -> Array:
    """Returns the share of cycles in which each arm (row) beats each other (column); NaN if not comparable."""
    matrix = np.full((len(comparison.arms), len(comparison.arms)), math.nan)
    for (i, first), (j, second) in permutations(enumerate(comparison.arms), 2):
        if seeds := paired_seeds(first, second):
            matrix[i, j] = win_share(accuracies(first, seeds), accuracies(second, seeds))
    return matrix


def total_penalties(comparisons: Comparisons) -> tuple[list[str], Array]:
    """Returns the methods that `method_ranks` ranks and the sum of their penalty matrices (Ash et al., ICLR 2020)."""
    methods = method_ranks(comparisons).methods
    total = np.zeros((len(methods), len(methods)))
    for comparison in comparisons:
        names = [arm.method_name for arm in comparison.arms]
        order = [names.index(method) for method in methods]
        total += penalty_matrix(comparison)[np.ix_(order, order)]
    return methods, total


def method_ranks(comparisons: Comparisons) -> MethodRanks:
    """Ranks the methods that every dataset has in exactly one setting."""
    scores = []
    for comparison in comparisons:
        names = [arm.method_name for arm in comparison.arms]
        scores.append({arm.method_name: area(arm).mean for arm in comparison.arms if names.count(arm.method_name) == 1})
    shared = sorted(set.intersection(*map(set, scores))) if scores else []
    if not shared:
        return MethodRanks([], np.empty((0, 0)), np.empty(0))
    table = np.array([[score[method] for method in shared] for score in scores])
    return MethodRanks(shared, np.array([mean_ranks(row[None]) for row in table]), mean_ranks(table))
