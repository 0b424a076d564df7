"""Computes how many labels an arm saves against random sampling."""

import math
from typing import NamedTuple

from sslpl.report.comparison import Arm, DatasetComparison, mean_curve
from sslpl.report.statistics import Estimate, estimate, labels_to_reach

BASELINE = "random"


class LabelSaving(NamedTuple):
    """The labels that an arm and random sampling need for the same test accuracy."""

    target: float  # accuracy, 0 to 1
    random: float  # labels, on the mean curve of random sampling
    labels: float  # labels, on the mean curve of the arm; NaN if it never reaches the target
    seeds: Estimate | None  # labels over the arm's seeds; None unless every seed reaches the target
    reached: int  # number of seeds that reach the target


def label_savings(comparison: DatasetComparison, arm: Arm) -> list[LabelSaving]:
    """Returns an arm's savings at each new maximum of the mean accuracy of random sampling; none without a baseline."""
    baseline = random_baseline(comparison, arm)
    means = [point.mean for _, point in mean_curve(baseline)] if baseline else []
    maxima = [mean for k, mean in enumerate(means) if k and mean > max(means[:k])]
    return [saving_at(arm, baseline, target) for target in maxima] if baseline else []


def random_baseline(comparison: DatasetComparison, arm: Arm) -> Arm | None:
    """Returns the arm of random sampling with the same protocol and numbers of labels, if there is one."""
    key = BASELINE, arm.runs[0].protocol, arm.labeled_counts
    arms = comparison.arms
    return next((a for a in arms if (a.method_name, a.runs[0].protocol, a.labeled_counts) == key), None)


def saving_at(arm: Arm, baseline: Arm, target: float) -> LabelSaving:
    """Returns the labels that an arm and its baseline need for a target accuracy."""
    curves = [[(row["labeled"], row["test_accuracy"]) for row in run.rows] for run in arm.runs]
    needed = [labels_to_reach(curve, target) for curve in curves]
    reached = [labels for labels in needed if not math.isnan(labels)]
    seeds = estimate(reached) if len(reached) == len(needed) else None
    return LabelSaving(target, mean_labels(baseline, target), mean_labels(arm, target), seeds, len(reached))


def mean_labels(arm: Arm, target: float) -> float:
    """Returns the labels at which an arm's mean curve reaches an accuracy; NaN if it never does."""
    return labels_to_reach([(labeled, point.mean) for labeled, point in mean_curve(arm)], target)
