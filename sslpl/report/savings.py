"""Computes how many labels an arm saves against random sampling."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from sslpl.report.baselines import random_baseline
from sslpl.report.comparison import Arm, DatasetComparison, mean_curve
from sslpl.report.statistics import Estimate, estimate, labels_to_reach

Curve = Sequence[tuple[float, float]]  # labels, accuracy


class LabelSaving(NamedTuple):
    """The labels that an arm and random sampling need for the same test accuracy."""

    target: float  # accuracy, 0 to 1
    random: float  # labels, on the mean curve of random sampling
    labels: float  # labels, on the mean curve of the arm; NaN if it never reaches the target
    seeds: Estimate | None  # labels over the arm's seeds; None unless every seed reaches the target
    reached: int  # number of seeds that reach the target

    @property
    def share(self) -> float:
        """Returns the arm's labels as a share of those of random sampling; NaN if it never reaches the target."""
        return self.labels / self.random


@cache
def label_savings(comparison: DatasetComparison, arm: Arm) -> list[LabelSaving]:
    """Returns an arm's savings at each new maximum of the mean accuracy of random sampling; none without a baseline."""
    baseline = random_baseline(comparison, arm)
    if baseline is None:
        return []
    random, mean = mean_accuracies(baseline), mean_accuracies(arm)
    curves = [[(row["labeled"], row["test_accuracy"]) for row in run.rows] for run in arm.runs]
    targets = [y for k, (_, y) in enumerate(random) if k and y > max(before for _, before in random[:k])]
    return [saving_at(target, random, mean, curves) for target in targets]


def saving_at(target: float, random: Curve, mean: Curve, curves: Sequence[Curve]) -> LabelSaving:
    """Returns the labels that the mean curves of random sampling and of an arm, and those of its seeds, need."""
    needed = [labels_to_reach(curve, target) for curve in curves]
    reached = [labels for labels in needed if not math.isnan(labels)]
    seeds = estimate(reached) if len(reached) == len(needed) else None
    return LabelSaving(target, labels_to_reach(random, target), labels_to_reach(mean, target), seeds, len(reached))


def mean_accuracies(arm: Arm) -> Curve:
    """Returns an arm's mean curve."""
    return [(labeled, point.mean) for labeled, point in mean_curve(arm)]


def speed_up_factor(savings: Sequence[LabelSaving]) -> float:
    """Returns the median share of random sampling's labels that an arm needs for its accuracies; NaN if it is unknown.

    Below 1, fewer labels suffice. Kath et al. 2026 give the factor its name; computing it on the interpolated curves,
    and the median, are ours. An accuracy that is not reached counts as a share above all others.
    """
    shares = [math.inf if math.isnan(saving.share) else saving.share for saving in savings]
    median = float(np.median(shares)) if shares else math.nan
    return median if math.isfinite(median) else math.nan
