"""What the page draws, as plain data: the charts of a dataset and the look of its lines."""

import math
from collections.abc import Sequence
from typing import Any

from sslpl.recording.views import PHASE_SECONDS
from sslpl.report.boards import Board, Line, curve, final
from sslpl.report.compare import class_balance
from sslpl.report.looks import Look
from sslpl.report.statistics import Estimate, estimate

Points = list[list[float | None]]  # x, mean, low, high, n
MEASURES = (
    ("test_accuracy", "Test accuracy", "percent"),
    ("test_nll", "Negative log-likelihood on the test set", ""),
    ("loss_rank_correlation", "Rank correlation of predicted and true loss", ""),
    ("pseudo_label_rate", "Share of unlabeled images with a pseudo-label", "percent"),
    ("pseudo_label_accuracy", "Accuracy of the pseudo-labels", "percent"),
)


def board_data(board: Board, looks: dict[str, Look], classes: int) -> dict[str, Any]:
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
    balance = {line.name: listed(class_balance(line, classes)) for line in board.lines}
    charts += [
        chart("Balance of the classes in each query", "percent", balance),
        chart("Test accuracy over time", "percent", {one.name: over_time(one) for one in board.lines}, "seconds"),
    ]
    shown = [one for one in charts if one["series"] or one.get("partial")]
    return {"lines": [look_of(line, looks[line.name]) for line in [*lines, *board.ceilings]], "charts": shown}


def look_of(line: Line, look: Look) -> dict[str, Any]:
    """A line's entry in the legend."""
    return {"name": line.name, "color": look.color, "dash": " ".join(map(str, look.dash)), "shown": look.shown}


def by_labels(lines: Sequence[Line], column: str, title: str, unit: str) -> dict[str, Any]:
    """The chart of a column of metrics.csv against the number of labels."""
    return chart(title, unit, {line.name: listed(curve(line, column)) for line in lines if line.runs})


def chart(title: str, unit: str, series: dict[str, Points], axis: str = "labeled images") -> dict[str, Any]:
    """A chart of named series."""
    return {
        "title": title,
        "unit": unit,
        "axis": axis,
        "series": [[k, points] for k, points in series.items() if points],
    }


def listed(points: Sequence[tuple[float, Estimate]]) -> Points:
    """Points of a curve, an interval that is not defined as null."""
    return [[x, e.mean, defined(e.low), defined(e.high), e.n] for x, e in points]


def defined(value: float) -> float | None:
    """The number, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def over_time(line: Line) -> Points:
    """Test accuracy after the mean seconds that the cycles up to it took."""
    points, seconds = [], 0.0
    for k in range(min(len(run.rows) for run in line.runs)):
        rows = [run.rows[k] for run in line.runs]
        seconds += sum(row.get(phase, 0.0) for row in rows for phase in PHASE_SECONDS) / len(rows)
        points.append((seconds, estimate([row["test_accuracy"] for row in rows])))
    return listed(points)
