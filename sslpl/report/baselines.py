"""Finds the arms that others are measured against, and the share of the gain between them that an arm attains."""

from collections.abc import Callable

from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.statistics import Array, Interval, ratio_of_means

BASELINE = "random"


def random_baseline(comparison: DatasetComparison, arm: Arm) -> Arm | None:
    """Returns the arm of random sampling with the same protocol and numbers of labels, if there is one."""
    return best_alike(comparison, arm, lambda other: other.method_name == BASELINE)


def oracle_baseline(comparison: DatasetComparison, arm: Arm) -> Arm | None:
    """Returns the best arm that sees hidden labels, with the same protocol and numbers of labels, if there is one."""
    return best_alike(comparison, arm, lambda other: other.runs[0].oracle_baseline)


def best_alike(comparison: DatasetComparison, arm: Arm, wanted: Callable[[Arm], bool]) -> Arm | None:
    """Returns the best wanted arm with the protocol and the numbers of labels of a given one."""
    alike = (
        other
        for other in comparison.arms
        if other.labeled_counts == arm.labeled_counts and wanted(other) and other.protocol == arm.protocol
    )
    return next(alike, None)


def gains(comparison: DatasetComparison, arm: Arm) -> Array | None:
    """Returns an arm's area under the budget curve minus that of random sampling, for each seed that both have."""
    baseline = random_baseline(comparison, arm)
    if baseline is None or not (seeds := sorted({*arm.seeds} & {*baseline.seeds})):
        return None
    return arm.areas[arm.rows_of(seeds)] - baseline.areas[baseline.rows_of(seeds)]


def attainable_share(comparison: DatasetComparison, arm: Arm) -> Interval | None:
    """Returns (arm - random) / (oracle - random), each a mean area over shared seeds; None without both baselines."""
    baseline, oracle = random_baseline(comparison, arm), oracle_baseline(comparison, arm)
    if baseline is None or oracle is None:
        return None
    seeds = sorted({*arm.seeds} & {*baseline.seeds} & {*oracle.seeds})
    if not seeds:
        return None
    areas, random, best = (each.areas[each.rows_of(seeds)] for each in (arm, baseline, oracle))
    return ratio_of_means(areas - random, best - random)
