"""Describes which images arms queried: the balance and shares of their classes, and the overlap between arms."""

import math
from itertools import combinations, combinations_with_replacement

import numpy as np

from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.read import Queries, Run
from sslpl.report.statistics import Array, Estimate, class_counts, estimate, jaccard_index, normalized_entropy


def class_count(comparison: DatasetComparison) -> int:
    """Returns one more than the highest class that was labeled in any run, and 2 before there are labels."""
    return 1 + max((int(run.queries.label.max()) for run in comparison.runs if len(run.queries.label)), default=1)


def query_balance(arm: Arm, classes: int) -> list[tuple[float, Estimate]]:
    """Returns pairs (number of labels after the query, estimate of the balance of its classes, 0 to 1)."""
    counts = [class_counts(run.queries.cycle, run.queries.label, len(run.rows), classes) for run in arm.runs]
    by_run = map(normalized_entropy, counts)
    cycles = zip(*by_run, strict=False)  # as many as the shortest run has
    values = [[float(balance) for balance in cycle if not math.isnan(balance)] for cycle in cycles]
    labeled = [row["labeled"] for row in arm.runs[0].rows]
    return [(labeled[k], estimate(balances)) for k, balances in enumerate(values) if balances]


def class_shares(arm: Arm, classes: int) -> Array:
    """Returns the share of each class [classes] in all that an arm's runs queried after the initial labels."""
    labels = np.concatenate([queried(run).label for run in arm.runs])
    return np.bincount(labels, minlength=classes) / max(len(labels), 1)


def queried(run: Run) -> Queries:
    """Returns a run's labeled images without the initial ones, which no strategy chose."""
    mask = run.queries.cycle > 0
    return Queries(*(column[mask] for column in run.queries))


def overlap_matrix(comparison: DatasetComparison) -> Array:
    """Returns the mean Jaccard index of the queried images: of two arms with equal seeds, of an arm with two seeds."""
    images = [{run.seed: np.sort(queried(run).index) for run in arm.runs} for arm in comparison.arms]
    matrix = np.full((len(images), len(images)), math.nan)
    for i, j in combinations_with_replacement(range(len(images)), 2):
        same_seed = [(images[i][seed], images[j][seed]) for seed in images[i].keys() & images[j].keys()]
        pairs = list(combinations(images[i].values(), 2)) if i == j else same_seed
        indices = [jaccard_index(*pair) for pair in pairs]
        matrix[i, j] = matrix[j, i] = np.mean(indices) if indices else math.nan
    return matrix
