"""Lines against one another: paired tests, penalty matrix, ranks, label savings, overlap of what they chose."""

import math
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

import numpy as np

from sslpl.recording.run_tables import aubc
from sslpl.report.comparison import Arm, DatasetComparison, area, baseline, curve, mean_labels
from sslpl.report.read import Queries, Run
from sslpl.report.statistics import (
    Array,
    Estimate,
    Paired,
    balance,
    class_counts,
    estimate,
    holm,
    labels_to_reach,
    mean_ranks,
    overlap,
    paired,
    wins,
)


class Test(NamedTuple):
    """The areas of two lines compared over their shared seeds; the first has the higher mean area."""

    first: Arm
    second: Arm
    result: Paired
    adjusted: float  # p of the paired t test after Holm's correction over the tests of the board


class Saving(NamedTuple):
    """How many labels a line needs for an accuracy that random sampling reaches."""

    target: float
    random: float  # labels that the mean curve of random sampling needs
    labels: float  # labels that the mean curve of the line needs; NaN if it does not get there
    seeds: Estimate | None  # the same over the seeds; None unless all of them get there
    reached: int  # how many seeds get there


def comparable(first: Arm, second: Arm) -> bool:
    """Whether lines differ in one thing, method or protocol, and were tested with the same numbers of labels."""
    alike = first.runs[0].protocol == second.runs[0].protocol or first.label == second.label
    return alike and first.grid == second.grid


def tests(board: DatasetComparison) -> list[Test]:
    """The paired tests of all comparable lines with two shared seeds or more, the smallest p first."""
    found = []
    for first, second in combinations(board.lines, 2):
        seeds = sorted(set(first.seeds) & set(second.seeds))
        if len(seeds) > 1 and comparable(first, second):
            found.append((first, second, paired(areas(first, seeds), areas(second, seeds))))
    adjusted = holm([result.p for *_, result in found])
    return sorted((Test(*one, p) for one, p in zip(found, adjusted, strict=True)), key=lambda test: test.result.p)


def areas(line: Arm, seeds: list[int]) -> list[float]:
    """The area under the budget curve for each of some seeds."""
    return [aubc(run.rows) for run in line.runs if run.seed in seeds]


def accuracies(line: Arm, seeds: list[int]) -> Array:
    """Test accuracy [seeds, cycles] at the numbers of labels that the runs share."""
    by_labels = [{row["labeled"]: row["test_accuracy"] for row in run.rows} for run in line.runs if run.seed in seeds]
    return np.array([[accuracy[labeled] for labeled in line.grid] for accuracy in by_labels])


def penalties(board: DatasetComparison) -> Array:
    """In what share of the cycles a line (row) beats another (column); NaN where they cannot be compared."""
    matrix = np.full((len(board.lines), len(board.lines)), math.nan)
    for (i, first), (j, second) in ((a, b) for a in enumerate(board.lines) for b in enumerate(board.lines)):
        seeds = sorted(set(first.seeds) & set(second.seeds))
        if i != j and len(seeds) > 1 and comparable(first, second):
            matrix[i, j] = wins(accuracies(first, seeds), accuracies(second, seeds))
    return matrix


def ranks(boards: list[DatasetComparison]) -> tuple[list[str], Array, Array]:
    """The labels that every dataset has in one setting, their ranks by mean area [datasets, labels], the mean ranks."""
    scores = []
    for board in boards:
        names = [line.label for line in board.lines]
        scores.append({line.label: area(line).mean for line in board.lines if names.count(line.label) == 1})
    shared = sorted(set.intersection(*map(set, scores))) if scores else []
    if not shared:
        return [], np.empty((0, 0)), np.empty(0)
    table = np.array([[score[label] for label in shared] for score in scores])
    return shared, np.array([mean_ranks(row[None]) for row in table]), mean_ranks(table)


def total_penalties(boards: list[DatasetComparison]) -> tuple[list[str], Array]:
    """The penalty matrices of all datasets added up (Ash et al., ICLR 2020), over the labels that `ranks` compares."""
    labels, _, _ = ranks(boards)
    total = np.zeros((len(labels), len(labels)))
    for board in boards:
        names = [line.label for line in board.lines]
        order = [names.index(label) for label in labels]
        total += penalties(board)[np.ix_(order, order)]
    return labels, total


def savings(board: DatasetComparison, line: Arm) -> list[Saving]:
    """What a line needs for each accuracy at which the mean curve of random sampling is higher than ever before."""
    reference = baseline(board, line)
    means = [target.mean for _, target in curve(reference)] if reference else []
    highest = [mean for k, mean in enumerate(means) if k and mean > max(means[:k])]
    return [saving(line, reference, target) for target in highest] if reference else []


def saving(line: Arm, reference: Arm, target: float) -> Saving:
    """What a line and random sampling need for an accuracy."""
    needed = [
        labels_to_reach([row["labeled"] for row in run.rows], [row["test_accuracy"] for row in run.rows], target)
        for run in line.runs
    ]
    reached = [labels for labels in needed if not math.isnan(labels)]
    seeds = estimate(reached) if len(reached) == len(needed) else None
    return Saving(target, mean_labels(reference, target), mean_labels(line, target), seeds, len(reached))


def class_balance(line: Arm, classes: int) -> list[tuple[float, Estimate]]:
    """The balance of the classes of each cycle's queries, by the number of labels they led to."""
    by_run = [balance(class_counts(run.queries.cycle, run.queries.label, len(run.rows), classes)) for run in line.runs]
    cycles = min(map(len, by_run))
    values = [[float(run[k]) for run in by_run if not math.isnan(run[k])] for k in range(cycles)]
    labeled = [row["labeled"] for row in line.runs[0].rows]
    return [(labeled[k], estimate(values[k])) for k in range(cycles) if values[k]]


def class_shares(line: Arm, classes: int) -> Array:
    """The share of each class [classes] among all that was queried after the first labels, over the seeds."""
    chosen = np.concatenate([after_the_first(run).label for run in line.runs])
    return np.bincount(chosen, minlength=classes) / max(len(chosen), 1)


def after_the_first(run: Run) -> Queries:
    """Its queries without the first labels, which no strategy chose."""
    chosen = run.queries.cycle > 0
    return Queries(*(column[chosen] for column in run.queries))


def overlaps(board: DatasetComparison) -> Array:
    """Jaccard's index of what lines chose: off the diagonal with the same seed, on it of one line with two seeds."""
    chosen = [{run.seed: np.sort(after_the_first(run).index) for run in line.runs} for line in board.lines]
    matrix = np.full((len(chosen), len(chosen)), math.nan)
    for i, j in combinations_with_replacement(range(len(chosen)), 2):
        same = [(chosen[i][seed], chosen[j][seed]) for seed in chosen[i].keys() & chosen[j].keys()]
        pairs = list(combinations(chosen[i].values(), 2)) if i == j else same
        values = [overlap(*pair) for pair in pairs]
        matrix[i, j] = matrix[j, i] = np.mean(values) if values else math.nan
    return matrix
