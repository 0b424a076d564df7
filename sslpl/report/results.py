"""Summarize each arm in a row of the main table."""

import math
from collections.abc import Callable, Sequence

from sslpl.recording.progress import duration
from sslpl.report.baselines import attainable_share
from sslpl.report.comparison import Arm, Comparisons, DatasetComparison, area, cycle_mean, final_accuracy, run_seconds
from sslpl.report.savings import label_savings, speed_up_factor
from sslpl.report.table import DASH, Cell, Name, Table, Text, Value, drop_empty_columns, percent_interval, percent_value

CAPTION = (
    "AUBC is the area under the budget curve. AUBC and accuracy in percent; mean ± standard deviation over seeds; a "
    "range is the 95% interval of the mean (Student t)."
)
COLUMN_CAPTIONS = {
    "attainable gain": "Attainable gain: percent of the way from the AUBC of random sampling (0) to that of the best "
    "baseline that sees the hidden labels (100).",
    "rank correlation": "Rank correlation: that of predicted and true losses.",
    "speed-up factor": "Speed-up factor: the share of random sampling's labels that a method needs for the same "
    "accuracies (below 1: fewer labels), the median over these.",
}


def attainable_cell(comparison: DatasetComparison, arm: Arm) -> Cell:
    """Returns the share of the attainable gain that an arm has, in percent."""
    return percent_interval(attainable_share(comparison, arm), digits=0)


def speed_up_cell(comparison: DatasetComparison, arm: Arm) -> Cell:
    """Returns the median share of random sampling's labels that an arm needs."""
    savings = label_savings(comparison, arm)
    factor = speed_up_factor(savings)
    return "not reached" if savings and math.isnan(factor) else DASH if math.isnan(factor) else Value(factor)


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
    "AUBC": lambda comparison, arm: percent_value(area(arm), spread=True, strong=arm is comparison.best),
    "final accuracy": lambda _, arm: percent_value(final_accuracy(arm), spread=True),
    "attainable gain": attainable_cell,
    "rank correlation": correlation_cell,
    "time": lambda _, arm: duration(run_seconds(arm)),
    "speed-up factor": speed_up_cell,
    "labels for random's last accuracy": saving_cell,
    "points gained per minute": gain_cell,
}
TEXT_COLUMNS = tuple(COLUMNS)[:9]  # in the terminal and Markdown
LATEX_COLUMNS = TEXT_COLUMNS[:7]


def results_table(comparisons: Comparisons, columns: Sequence[str] = TEXT_COLUMNS) -> Table:
    """Returns the main table with those of the columns that are not empty: a row per arm with a finished run."""
    arms = [(comparison, arm) for comparison in comparisons for arm in comparison.finished]
    return drop_empty_columns(Table(columns, [[COLUMNS[column](*arm) for column in columns] for arm in arms]))


def described_results(comparisons: Comparisons, columns: Sequence[str] = TEXT_COLUMNS) -> Table:
    """Returns the main table with a caption that explains its columns."""
    table = results_table(comparisons, columns)
    captions = (caption for column, caption in COLUMN_CAPTIONS.items() if column in table.header)
    return table._replace(caption=" ".join([CAPTION, *captions]))
