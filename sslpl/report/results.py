"""Summarize each arm in a row of the main table."""

import math
from collections.abc import Callable, Sequence

from sslpl.recording.progress import duration
from sslpl.report.comparison import Arm, Comparisons, DatasetComparison, area, cycle_mean, final_accuracy, run_seconds
from sslpl.report.savings import label_savings
from sslpl.report.table import DASH, Cell, Name, Table, Text, Value, percent_value

CAPTION = (
    "AUBC is the area under the budget curve, rank correlation that of predicted and true losses. AUBC and accuracy in "
    "percent; mean ± standard deviation over seeds; a range is the 95% interval of the mean (Student t)."
)


def saving_cell(comparison: DatasetComparison, arm: Arm) -> Cell:
    """Returns the labels that an arm needs for the last accuracy of random sampling, and the share that it saves."""
    saving = next(reversed(label_savings(comparison, arm)), None)
    if saving is None or math.isnan(saving.labels):
        return "not reached" if saving else DASH
    percent = round(100 * (1 - saving.labels / saving.random))
    relation = f"{abs(percent)}% {'more' if percent < 0 else 'fewer'} than {saving.random:,.0f}"
    return Text(f"{saving.labels:,.0f}", relation if percent else "as many")


def gain_cell(_: DatasetComparison, arm: Arm) -> Cell:
    """Returns the percentage points gained from the first cycle to the last per minute of a run."""
    seconds = run_seconds(arm)
    if len(arm.labeled_counts) < 2 or not seconds:
        return DASH
    first = sum(run.rows[0]["test_accuracy"] for run in arm.runs) / len(arm.runs)
    return Value(100 * (final_accuracy(arm).mean - first) / (seconds / 60))


def correlation_cell(_: DatasetComparison, arm: Arm) -> Cell:
    """Returns the rank correlation of predicted and true losses, averaged over the cycles of each run."""
    correlation = cycle_mean(arm, "loss_rank_correlation")
    return Value(correlation.mean, correlation.low, correlation.high, correlation.std, 3) if correlation else DASH


COLUMNS: dict[str, Callable[[DatasetComparison, Arm], Cell]] = {
    "dataset": lambda comparison, _: Name(comparison.dataset),
    "method": lambda _, arm: Name(arm.name, colored=True),
    "seeds": lambda _, arm: str(len(arm.runs)),
    "AUBC": lambda comparison, arm: percent_value(area(arm), spread=True, strong=arm in comparison.arms[:1]),
    "final accuracy": lambda _, arm: percent_value(final_accuracy(arm), spread=True),
    "rank correlation": correlation_cell,
    "time": lambda _, arm: duration(run_seconds(arm)),
    "labels for random's last accuracy": saving_cell,
    "points gained per minute": gain_cell,
}
TEXT_COLUMNS = tuple(COLUMNS)[:7]  # in the terminal and Markdown
LATEX_COLUMNS = TEXT_COLUMNS[:-1]


def results_table(comparisons: Comparisons, columns: Sequence[str] = TEXT_COLUMNS) -> Table:
    """Returns the main table with the given columns: a row per arm with a finished run."""
    arms = [(comparison, arm) for comparison in comparisons for arm in comparison.finished]
    return Table(columns, [[COLUMNS[column](*arm) for column in columns] for arm in arms])
