"""Writes the numbers of the comparison as CSV files; accuracies are from 0 to 1."""

import math
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

from sslpl.csv_text import csv_text
from sslpl.recording.run_tables import aubc
from sslpl.report.baselines import attainable_share
from sslpl.report.comparison import (
    Comparisons,
    DatasetComparison,
    area,
    cycle_mean,
    final_accuracy,
    mean_curve,
    run_seconds,
)
from sslpl.report.factorial import METRICS, effects, full_factorial
from sslpl.report.over_datasets import aggregates
from sslpl.report.pairwise import paired_tests, penalty_matrix, win_matrix
from sslpl.report.savings import label_savings, speed_up_factor
from sslpl.report.statistics import Estimate

Rows = Iterator[list[Any]]
ESTIMATES = ("aubc", "final_accuracy", "loss_rank_correlation")
PARTS = ("mean", "std", "low", "high")
CURVES = (
    *("test_accuracy", "test_nll", "test_ece", ESTIMATES[2]),
    *("pseudo_label_rate", "pseudo_label_accuracy", "wasted_label_rate", "annotator_kappa", "label_accuracy"),
)


def csv_files(comparisons: Comparisons) -> dict[str, str]:
    """Returns the content of each CSV file by name.

    effects.csv only if options were crossed, aggregate.csv only for several datasets that share a method.
    """
    files = {}
    for name, (columns, dataset_rows) in FILES.items():
        rows = [[comparison.dataset, *row] for comparison in comparisons for row in dataset_rows(comparison)]
        if rows or name != "effects.csv":
            files[name] = csv_text(["dataset", *columns.split()], rows)
    if len(comparisons) > 1 and (rows := list(aggregate_rows(comparisons))):
        files["aggregate.csv"] = csv_text(["method", "runs", "measure", "iqm", "low", "high"], rows)
    return files


def summary_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per arm."""
    for arm in comparison.finished:
        estimates = (area(arm), final_accuracy(arm), cycle_mean(arm, ESTIMATES[2]))
        parts = [part for estimate in estimates for part in estimate_parts(estimate)]
        share = [*(attainable_share(comparison, arm) or [None] * 3)]
        factor = speed_up_factor(label_savings(comparison, arm))
        yield [arm.method_name, arm.setting, len(arm.runs), *parts, run_seconds(arm), *share, factor]


def curve_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per arm, measure and number of labels."""
    for arm in comparison.finished:
        for column in CURVES:
            for labeled, point in mean_curve(arm, column):
                yield [arm.method_name, arm.setting, column, int(labeled), point.n, *estimate_parts(point)]


def test_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per paired test: the area under the budget curve of the first arm minus that of the second."""
    for test in paired_tests(comparison):
        yield [test.first.name, test.second.name, *test.result, test.adjusted, *test.needed]


def win_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per ordered pair of comparable arms: its share of wins, and of significantly better cycles."""
    wins, penalties, names = win_matrix(comparison), penalty_matrix(comparison), [arm.name for arm in comparison.arms]
    for (i, first), (j, second) in permutations(enumerate(names), 2):
        if not math.isnan(wins[i, j]):
            yield [first, second, float(wins[i, j]), float(penalties[i, j])]


def saving_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per arm and accuracy of random sampling: the labels that both need for it."""
    for arm in comparison.arms:
        for s in label_savings(comparison, arm):
            labels = [s.target, s.random, s.labels, s.share, s.reached, *estimate_parts(s.seeds)]
            yield [arm.method_name, arm.setting, *labels]


def effect_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per effect of crossed options."""
    if factorial := full_factorial(comparison):
        for metric in range(len(METRICS)):
            for effect in effects(factorial, metric):
                sides = [" x ".join(f"{option[0]}={option[side]}" for option in effect.options) for side in (1, 2)]
                yield [effect.metric, *sides, *effect.result[:5], effect.adjusted]


def aggregate_rows(comparisons: Comparisons) -> Rows:
    """Yields a row per method that all datasets have and per measure."""
    for found in aggregates(comparisons):
        for measure, interval in (("aubc", found.area), ("gain", found.gain), ("attainable_share", found.attainable)):
            if interval is not None:
                yield [found.method, found.runs, measure, *interval]


def run_rows(comparison: DatasetComparison) -> Rows:
    """Yields a row per run, whatever its state."""
    for run in comparison.runs:
        accuracies = [aubc(run.rows), run.rows[-1]["test_accuracy"]] if run.rows else [None, None]
        status = [run.seed, run.state, run.note, len(run.rows)]
        yield [run.method_name, run.setting, *status, *accuracies, str(run.folder)]


def estimate_parts(estimate: Estimate | None) -> list[float | None]:
    """Returns mean, standard deviation and interval; None where there is no estimate."""
    return [*estimate[:4]] if estimate else [None] * len(PARTS)


ARM = "label setting"
FILES: dict[str, tuple[str, Callable[[DatasetComparison], Rows]]] = {  # columns after `dataset`, and the rows
    "summary.csv": (
        f"{ARM} n {' '.join(f'{name}_{part}' for name in ESTIMATES for part in PARTS)} seconds"
        " attainable_share attainable_share_low attainable_share_high speed_up_factor",
        summary_rows,
    ),
    "curves.csv": (f"{ARM} measure labeled n {' '.join(PARTS)}", curve_rows),
    "tests.csv": (
        "first second seeds difference low high p_t_test p_wilcoxon d_z d_z_low d_z_high p_holm"
        " seeds_needed seeds_needed_low seeds_needed_high",
        test_rows,
    ),
    "wins.csv": ("first second wins penalties", win_rows),
    "savings.csv": (f"{ARM} accuracy random labels share seeds_reached {' '.join(PARTS)}", saving_rows),
    "effects.csv": ("metric effect reference n difference low high p p_holm", effect_rows),
    "runs.csv": (f"{ARM} seed state note cycles aubc last_accuracy folder", run_rows),
}
