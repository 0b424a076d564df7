"""What the page draws, as plain data: the charts of a dataset and the look of its lines."""

import math
from collections.abc import Sequence
from typing import Any

from sslpl.recording.run_tables import PHASE_SECONDS
from sslpl.report.compare import class_balance
from sslpl.report.comparison import Arm, DatasetComparison, curve, final
from sslpl.report.statistics import Estimate, estimate
from sslpl.report.styles import Style

Points = list[list[float | None]]  # x, mean, low and high of the band, n, half of the interval
Range = tuple[float, float]  # of the values that a measure can have
SHARE: Range = (0.0, 1.0)
MEASURES: tuple[tuple[str, str, str, Range], ...] = (
    ("test_accuracy", "Test accuracy", "percent", SHARE),
    ("test_nll", "Negative log-likelihood on the test set", "", (0.0, math.inf)),
    ("loss_rank_correlation", "Rank correlation of predicted and true loss", "", (-1.0, 1.0)),
    ("pseudo_label_rate", "Share of unlabeled images with a pseudo-label", "percent", SHARE),
    ("pseudo_label_accuracy", "Accuracy of the pseudo-labels", "percent", SHARE),
)


def chart_data(board: DatasetComparison, looks: dict[str, Style], classes: int) -> dict[str, Any]:
    """The charts of a board; lines that have nothing to show in one are left out of it."""
    lines = [*board.lines, *(line for line in board.waiting if any(run.rows for run in line.unfinished))]
    charts = [by_labels(lines, *measure) for measure in MEASURES]
    charts[0] |= {
        "ceilings": [[line.name, final(line).mean] for line in board.ceilings],
        "partial": [
            [line.name, [[row["labeled"], row["test_accuracy"]] for row in run.rows]]
            for line in lines
            for run in line.unfinished
            if run.rows
        ],
    }
    balance = {line.name: listed(class_balance(line, classes), SHARE) for line in board.lines}
    times = {line.name: over_time(line) for line in board.lines}
    charts += [
        chart("Balance of the classes in each query", "percent", SHARE, balance),
        chart("Test accuracy over time", "percent", SHARE, times, "seconds"),
    ]
    shown = [one for one in charts if one["series"] or one.get("partial")]
    return {"lines": [legend_entry(line, looks[line.name]) for line in [*lines, *board.ceilings]], "charts": shown}


def legend_entry(line: Arm, look: Style) -> dict[str, Any]:
    """A line's entry in the legend."""
    return {"name": line.name, "color": look.color, "dash": " ".join(map(str, look.dash)), "shown": look.shown}


def by_labels(lines: Sequence[Arm], column: str, title: str, unit: str, possible: Range) -> dict[str, Any]:
    """The chart of a column of metrics.csv against the number of labels."""
    series = {line.name: listed(curve(line, column), possible) for line in lines if line.runs}
    return chart(title, unit, possible, series)


def chart(
    title: str, unit: str, possible: Range, series: dict[str, Points], axis: str = "labeled images"
) -> dict[str, Any]:
    """A chart of named series."""
    return {
        "title": title,
        "unit": unit,
        "range": [defined(end) for end in possible],
        "axis": axis,
        "series": [[k, points] for k, points in series.items() if points],
    }


def listed(points: Sequence[tuple[float, Estimate]], possible: Range) -> Points:
    """Lists the points of a curve, the band clipped to the possible values; an undefined interval is null."""
    return [
        [x, e.mean, *(defined(end) for end in band(e, possible)), e.n, defined((e.high - e.low) / 2)] for x, e in points
    ]


def band(value: Estimate, possible: Range) -> Range:
    """Clips an interval to the values that a measure can have; NaN stays."""
    low, high = possible
    return (min(max(value.low, low), high), min(max(value.high, low), high))


def defined(value: float) -> float | None:
    """The number, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def over_time(line: Arm) -> Points:
    """Test accuracy after the mean seconds that the cycles up to it took."""
    points, seconds = [], 0.0
    for k in range(min(len(run.rows) for run in line.runs)):
        rows = [run.rows[k] for run in line.runs]
        seconds += sum(row.get(phase, 0.0) for row in rows for phase in PHASE_SECONDS) / len(rows)
        points.append((seconds, estimate([row["test_accuracy"] for row in rows])))
    return listed(points, SHARE)
