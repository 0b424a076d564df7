"""Prepares the charts of the page as plain data for JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sslpl.recording.run_tables import PHASE_SECONDS
from sslpl.report.comparison import Arm, DatasetComparison, final_accuracy, mean_curve
from sslpl.report.queries import class_count, query_balance
from sslpl.report.statistics import Estimate, estimate
from sslpl.report.styles import Style

Points = list[list[float | None]]  # x, mean, low and high of the band, n, half of the interval
Range = tuple[float, float]  # of the possible values of a metric
SHARE: Range = (0.0, 1.0)
METRICS: tuple[tuple[str, str, str, Range], ...] = (
    ("test_accuracy", "Test accuracy", "percent", SHARE),
    ("test_nll", "Negative log-likelihood on the test set", "", (0.0, math.inf)),
    ("loss_rank_correlation", "Rank correlation of predicted and true loss", "", (-1.0, 1.0)),
    ("pseudo_label_rate", "Share of unlabeled images with a pseudo-label", "percent", SHARE),
    ("pseudo_label_accuracy", "Accuracy of the pseudo-labels", "percent", SHARE),
    ("wasted_label_rate", "Share of wasted labels in each batch: images of no class", "percent", SHARE),
    ("annotator_kappa", "Agreement of the annotators (kappa)", "", (-1.0, 1.0)),
    ("label_accuracy", "Share of right labels", "percent", SHARE),
)


def chart_data(comparison: DatasetComparison, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Returns the legend and the charts of a dataset; a chart leaves out arms without a value for it."""
    arms = [*comparison.arms, *(arm for arm in comparison.unfinished if any(run.rows for run in arm.unfinished))]
    charts = [
        chart(
            title,
            unit,
            possible,
            {arm.name: curve_points(mean_curve(arm, column), possible) for arm in arms if arm.runs},
        )
        for column, title, unit, possible in METRICS
    ]
    charts[0] |= {
        "ceilings": [[arm.name, final_accuracy(arm).mean] for arm in comparison.ceilings],
        "partial": [
            [arm.name, [[row["labeled"], row["test_accuracy"]] for row in run.rows]]
            for arm in arms
            for run in arm.unfinished
            if run.rows
        ],
    }
    balance = {arm.name: curve_points(query_balance(arm, class_count(comparison)), SHARE) for arm in comparison.arms}
    seconds = {arm.name: accuracy_over_time(arm) for arm in comparison.arms}
    hours = accuracy_over(comparison, "labeling_seconds", 3600)
    charts += [
        chart("Balance of the classes in each query", "percent", SHARE, balance),
        chart("Test accuracy over time", "percent", SHARE, seconds, "seconds"),
        chart("Test accuracy over answers", "percent", SHARE, accuracy_over(comparison, "answers"), "answers"),
        chart("Test accuracy over the time of labeling", "percent", SHARE, hours, "hours of labeling"),
    ]
    shown = [chart for chart in charts if chart["series"] or chart.get("partial")]
    legend = [{"name": arm.name, **styles[arm.name]._asdict()} for arm in [*arms, *comparison.ceilings]]
    return {"arms": legend, "charts": shown}


def chart(
    title: str, unit: str, possible: Range, series: Mapping[str, Points], axis: str = "labeled images"
) -> dict[str, Any]:
    """Returns a chart of the series that have points."""
    shown = [[name, points] for name, points in series.items() if points]
    limits = [none_if_not_finite(end) for end in possible]
    return {"title": title, "unit": unit, "range": limits, "axis": axis, "series": shown}


def curve_points(curve: Sequence[tuple[float, Estimate]], possible: Range) -> Points:
    """Returns the points of a curve, its band clipped to the possible values; an undefined interval is null."""
    return [
        [x, e.mean, *map(none_if_not_finite, band(e, possible)), e.n, none_if_not_finite((e.high - e.low) / 2)]
        for x, e in curve
    ]


def band(value: Estimate, possible: Range) -> Range:
    """Clips an interval to the possible values of a metric; NaN stays."""
    low, high = possible
    return (min(max(value.low, low), high), min(max(value.high, low), high))


def none_if_not_finite(value: float) -> float | None:
    """Returns a number, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def accuracy_over_time(arm: Arm) -> Points:
    """Returns the test accuracy of each cycle against the mean seconds of all phases up to its end."""
    curve, seconds = [], 0.0
    for rows in zip(*(run.rows for run in arm.runs), strict=False):  # as many cycles as the shortest run has
        seconds += sum(row.get(phase, 0.0) for row in rows for phase in PHASE_SECONDS) / len(rows)
        curve.append((seconds, estimate([row["test_accuracy"] for row in rows])))
    return curve_points(curve, SHARE)


def accuracy_over(comparison: DatasetComparison, column: str, unit: float = 1) -> dict[str, Points]:
    """Returns, by arm, the test accuracy of each cycle against the mean of a column, divided by a unit.

    Arms without the column have no points.
    """
    curves = {}
    for arm in comparison.arms:
        cycles = [rows for rows in zip(*(run.rows for run in arm.runs), strict=False) if all(column in r for r in rows)]
        means = [sum(row[column] for row in rows) / len(rows) / unit for rows in cycles]
        accuracies = [estimate([row["test_accuracy"] for row in rows]) for rows in cycles]
        curves[arm.name] = curve_points([*zip(means, accuracies, strict=True)], SHARE)
    return curves
