"""Crossed options: where every combination of some groups was run, the effect of each and of their coming together."""

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from sslpl.config.identity import METHOD_GROUPS
from sslpl.recording.run_tables import aubc
from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.statistics import Array, Estimate, Paired, estimate, holm, paired

REFERENCE = ("none", "random")  # the options that others are measured against
ASIDE = ("experiment", "dataset", "tracker", "runtime")  # groups that are no factors
METRICS = ("area under the budget curve", "final accuracy")


class Factorial(NamedTuple):
    """A value for every combination of the options of two groups or more, and every seed."""

    groups: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]  # of each group, the one that others are measured against first
    seeds: list[int]
    values: Array  # [metrics, seeds, *options]


class Effect(NamedTuple):
    """What options change against those of reference, alone or beyond what each of them changes by itself."""

    metric: str
    options: tuple[tuple[str, str, str], ...]  # group, option, option of reference
    result: Paired
    adjusted: float  # p after Holm's correction over the effects of as many groups


def factorial(board: DatasetComparison) -> Factorial | None:
    """The finished lines of a board as a full factorial over shared seeds; None if they are not one."""
    chosen = [line.runs[0].choices for line in board.lines]
    groups = [group for group in crossed_groups(chosen) if len({one.get(group, "") for one in chosen}) > 1]
    if len(groups) < 2:
        return None
    options = tuple(ordered({one.get(group, "") for one in chosen}) for group in groups)
    cells = {tuple(one.get(g, "") for g in groups): line for one, line in zip(chosen, board.lines, strict=True)}
    if not len(cells) == len(board.lines) == math.prod(map(len, options)):
        return None
    seeds = sorted(set.intersection(*(set(line.seeds) for line in board.lines)))
    if len(seeds) < 2:
        return None
    table = np.array([scores(cells[cell], seeds) for cell in product(*options)])  # [cells, seeds, metrics]
    values = np.moveaxis(table, 0, -1).swapaxes(0, 1).reshape(len(METRICS), len(seeds), *map(len, options))
    return Factorial(tuple(groups), options, seeds, values)


def crossed_groups(chosen: Sequence[dict[str, str]]) -> list[str]:
    """The groups that may be factors: where methods differ, a method is one option and not those that it is made of,
    and where queries differ a query is one, not its scorer and selector."""
    groups = dict.fromkeys(group for one in chosen for group in one if group not in ASIDE)
    differ = {group for group in groups if len({one.get(group) for one in chosen}) > 1}
    made_of = (*METHOD_GROUPS, "training") if "method" in differ else ("method",)
    heads = ((group, *group.split("/", 1)) for group in groups)
    return [group for group, head, *part in heads if head not in made_of and not (part and head in differ)]


def ordered(options: set[str]) -> tuple[str, ...]:
    """Options by name, the one that others are measured against first."""
    return tuple(sorted(options, key=lambda option: (option not in REFERENCE, option)))


def scores(line: Arm, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """The area under the budget curve and the final accuracy for each seed."""
    runs = {run.seed: run for run in line.runs}
    return [(aubc(runs[seed].rows), runs[seed].rows[-1]["test_accuracy"]) for seed in seeds]


def contrast(values: Array, levels: dict[int, int]) -> Array:
    """What the levels {axis: level} add to level 0 of their axes, [n], for values [n, axis 0, axis 1, ...].

    One axis gives a main effect, several an interaction: the difference of differences. Other axes are averaged over.
    """
    for axis in reversed(range(values.ndim - 1)):
        along = np.moveaxis(values, axis + 1, -1)
        values = along[..., levels[axis]] - along[..., 0] if axis in levels else along.mean(axis=-1)
    return values


def effects(found: Factorial, metric: int = 0) -> list[Effect]:
    """All main effects, then the interactions of two groups, then of three, paired over seeds."""
    result: list[Effect] = []
    for order in range(1, min(3, len(found.groups)) + 1):
        these = []
        for axes in combinations(range(len(found.groups)), order):
            for levels in product(*(range(1, len(found.options[axis])) for axis in axes)):
                difference = contrast(found.values[metric], dict(zip(axes, levels, strict=True)))
                options = tuple(
                    (found.groups[axis], found.options[axis][level], found.options[axis][0])
                    for axis, level in zip(axes, levels, strict=True)
                )
                these.append((options, paired(difference.tolist(), [0.0] * len(difference))))
        adjusted = holm([one.p for _, one in these])
        result += [Effect(METRICS[metric], *one, p) for one, p in zip(these, adjusted, strict=True)]
    return result


def two_way(found: Factorial, first: int, second: int, metric: int = 0) -> list[list[Estimate]]:
    """The mean over seeds for each pair of options of two groups, averaged over the other groups."""
    others = tuple(axis + 1 for axis in range(len(found.groups)) if axis not in (first, second))
    table = found.values[metric].mean(axis=others)
    return [[estimate(table[:, i, j].tolist()) for j in range(table.shape[2])] for i in range(table.shape[1])]
