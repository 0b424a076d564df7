"""Summarizes methods over several datasets: ranks, wins, penalties, and interquartile means."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sslpl.report.baselines import gains, oracle_baseline
from sslpl.report.bootstrap import aggregate
from sslpl.report.comparison import Arm, Comparisons, DatasetComparison
from sslpl.report.pairwise import penalty_matrix, win_matrix
from sslpl.report.statistics import Array, Interval, mean_ranks


class MethodRanks(NamedTuple):
    """The ranks by mean area under the budget curve of the methods that all datasets have; 1 is best."""

    methods: list[str]
    by_dataset: Array  # [datasets, methods]
    mean: Array  # [methods]


class Aggregate(NamedTuple):
    """The interquartile means over the runs of a method on all datasets, with stratified bootstrap intervals."""

    method: str
    runs: int
    area: Interval  # under the budget curve, 0 to 1
    gain: Interval | None  # area minus that of random sampling with the same seed; None unless every dataset has it
    attainable: Interval | None  # gain divided by the mean gain of the oracle baseline; None likewise


def shared_methods(comparisons: Comparisons) -> list[str]:
    """Returns the methods that every dataset has in exactly one setting, by name."""
    names = [[arm.method_name for arm in comparison.arms] for comparison in comparisons]
    single = [{name for name in each if each.count(name) == 1} for each in names]
    return sorted(set.intersection(*single)) if single else []


def arm_of(comparison: DatasetComparison, method: str) -> Arm:
    """Returns the arm of a method that has one."""
    return next(arm for arm in comparison.arms if arm.method_name == method)


def method_ranks(comparisons: Comparisons) -> MethodRanks:
    """Ranks the methods that every dataset has in exactly one setting."""
    methods = shared_methods(comparisons)
    if not methods:
        return MethodRanks([], np.empty((0, 0)), np.empty(0))
    table = np.array([[arm_of(comparison, m).areas.mean() for m in methods] for comparison in comparisons])
    return MethodRanks(methods, np.array([mean_ranks(row[None]) for row in table]), mean_ranks(table))


def total_penalties(comparisons: Comparisons) -> tuple[list[str], Array]:
    """Returns the methods that all datasets have and the sum of their penalty matrices (Ash et al., ICLR 2020)."""
    methods, matrices = matrices_of_methods(comparisons, penalty_matrix)
    return methods, matrices.sum(axis=0)


def mean_wins(comparisons: Comparisons) -> tuple[list[str], Array]:
    """Returns the methods that all datasets have and the mean of their win matrices: each dataset counts the same."""
    methods, matrices = matrices_of_methods(comparisons, win_matrix)
    return methods, matrices.mean(axis=0)


def matrices_of_methods(
    comparisons: Comparisons, matrix: Callable[[DatasetComparison], Array]
) -> tuple[list[str], Array]:
    """Returns the methods that all datasets have and the matrix of each dataset, [datasets, methods, methods]."""
    methods, matrices = shared_methods(comparisons), []
    for comparison in comparisons:
        names = [arm.method_name for arm in comparison.arms]
        order = [names.index(method) for method in methods]
        matrices.append(matrix(comparison)[np.ix_(order, order)])
    return methods, np.array(matrices)


def aggregates(comparisons: Comparisons) -> list[Aggregate]:
    """Aggregates each method that all datasets have; the highest interquartile mean comes first."""
    found = [aggregate_method(comparisons, method) for method in shared_methods(comparisons)]
    return sorted(found, key=lambda each: -each.area.value)


def aggregate_method(comparisons: Comparisons, method: str) -> Aggregate:
    """Aggregates the runs of a method; datasets are the strata."""
    arms = [(comparison, arm_of(comparison, method)) for comparison in comparisons]
    return Aggregate(
        method,
        sum(len(arm.runs) for _, arm in arms),
        aggregate([arm.areas for _, arm in arms]),
        aggregate_if_complete([gains(*each) for each in arms]),
        aggregate_if_complete([attainable_shares(*each) for each in arms]),
    )


def aggregate_if_complete(strata: Sequence[Array | None]) -> Interval | None:
    """Aggregates the scores of the datasets; None if one has no scores."""
    scores = [stratum for stratum in strata if stratum is not None]
    return aggregate(scores) if len(scores) == len(strata) else None


def attainable_shares(comparison: DatasetComparison, arm: Arm) -> Array | None:
    """Returns an arm's gain for each seed, divided by the mean gain of the oracle baseline.

    None without both baselines, and if the oracle baseline is not above random sampling.
    """
    oracle = oracle_baseline(comparison, arm)
    gain, attainable = gains(comparison, arm), gains(comparison, oracle) if oracle else None
    return None if gain is None or attainable is None or attainable.mean() <= 0 else gain / attainable.mean()
