"""Analyze crossed options: the effect of each option, and of their combination, in a full factorial of some groups."""

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from sslpl.config.identity import METHOD_GROUPS
from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.statistics import Array, Estimate, PairedDifference, estimate, holm, paired_difference

REFERENCES = ("none", "random")  # the options that the others are compared with
EXCLUDED_GROUPS = ("experiment", "dataset", "tracker", "runtime")  # never factors
METRICS = ("area under the budget curve", "final accuracy")


class Factorial(NamedTuple):
    """A value of each metric for every combination of the options of at least two groups and every seed."""

    groups: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]  # of each group, the reference first
    seeds: list[int]
    values: Array  # [metrics, seeds, *options]


class Effect(NamedTuple):
    """The main effect of an option, or the interaction of options of several groups, against their references."""

    metric: str
    options: tuple[tuple[str, str, str], ...]  # group, option, reference
    result: PairedDifference
    adjusted: float  # p after Holm's correction over the effects with as many groups


def full_factorial(comparison: DatasetComparison) -> Factorial | None:
    """Arranges the arms of a dataset as a full factorial over at least two shared seeds; None if they are not one."""
    choices = [arm.runs[0].choices for arm in comparison.arms]
    groups = [group for group in candidate_groups(choices) if len({chosen.get(group, "") for chosen in choices}) > 1]
    options = tuple(sort_options({chosen.get(group, "") for chosen in choices}) for group in groups)
    cells = [tuple(chosen.get(group, "") for group in groups) for chosen in choices]
    if len(groups) < 2 or not len(set(cells)) == len(cells) == math.prod(map(len, options)):
        return None
    seeds = sorted(set.intersection(*(set(arm.seeds) for arm in comparison.arms)))
    if len(seeds) < 2:
        return None
    by_cell = dict(zip(cells, comparison.arms, strict=True))
    table = np.array([seed_scores(by_cell[cell], seeds) for cell in product(*options)])  # [cells, seeds, metrics]
    values = np.moveaxis(table, 0, -1).swapaxes(0, 1).reshape(len(METRICS), len(seeds), *map(len, options))
    return Factorial(tuple(groups), options, seeds, values)


def candidate_groups(choices: Sequence[dict[str, str]]) -> list[str]:
    """Returns the groups that can be factors.

    Where methods differ, `method` is a factor and the groups that it sets are not; where queries differ, `query` is one
    and its scorer and selector are not.
    """
    groups = dict.fromkeys(group for chosen in choices for group in chosen if group not in EXCLUDED_GROUPS)
    differ = {group for group in groups if len({chosen.get(group) for chosen in choices}) > 1}
    excluded = (*METHOD_GROUPS, "training") if "method" in differ else ("method",)
    heads = ((group, *group.split("/", 1)) for group in groups)
    return [group for group, head, *part in heads if head not in excluded and not (part and head in differ)]


def sort_options(options: set[str]) -> tuple[str, ...]:
    """Sorts options by name, the reference first."""
    return tuple(sorted(options, key=lambda option: (option not in REFERENCES, option)))


def seed_scores(arm: Arm, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Returns the area under the budget curve and the final accuracy for each seed."""
    return [(float(arm.areas[k]), arm.runs[k].rows[-1]["test_accuracy"]) for k in arm.rows_of(seeds)]


def contrast(values: Array, levels: dict[int, int]) -> Array:
    """Returns what the levels {axis: level} change against level 0, [n], for values [n, axis 0, axis 1, ...].

    One axis gives a main effect, several an interaction: the difference of differences. Other axes are averaged over.
    """
    for axis in reversed(range(values.ndim - 1)):
        along = np.moveaxis(values, axis + 1, -1)
        values = along[..., levels[axis]] - along[..., 0] if axis in levels else along.mean(axis=-1)
    return values


def effects(factorial: Factorial, metric: int = 0) -> list[Effect]:
    """Returns all main effects, then all interactions of two groups, then of three, paired over seeds."""
    return [
        effect
        for order in range(1, min(3, len(factorial.groups)) + 1)
        for effect in effects_of_order(factorial, metric, order)
    ]


def effects_of_order(factorial: Factorial, metric: int, order: int) -> list[Effect]:
    """Returns the effects of as many groups together as the order says."""
    results = []
    for axes in combinations(range(len(factorial.groups)), order):
        for levels in product(*(range(1, len(factorial.options[axis])) for axis in axes)):
            difference = contrast(factorial.values[metric], dict(zip(axes, levels, strict=True)))
            options = tuple(
                (factorial.groups[axis], factorial.options[axis][level], factorial.options[axis][0])
                for axis, level in zip(axes, levels, strict=True)
            )
            results.append((options, paired_difference(difference.tolist(), [0.0] * len(difference))))
    adjusted = holm([result.p for _, result in results])
    return [Effect(METRICS[metric], *result, p) for result, p in zip(results, adjusted, strict=True)]


def two_way_means(factorial: Factorial, first: int, second: int, metric: int = 0) -> list[list[Estimate]]:
    """Estimates the mean over seeds for each pair of options of two groups, averaged over the other groups."""
    others = tuple(axis + 1 for axis in range(len(factorial.groups)) if axis not in (first, second))
    table = factorial.values[metric].mean(axis=others)
    return [[estimate(table[:, i, j].tolist()) for j in range(table.shape[2])] for i in range(table.shape[1])]
