"""Returns the sections of the report about one dataset, and its tables of savings, classes, time and status."""

import math

from sslpl.recording.progress import duration
from sslpl.report.comparison import DatasetComparison, phase_seconds
from sslpl.report.factorial_tables import crossed_tables
from sslpl.report.pairwise_tables import penalties_table, tests_table, wins_table
from sslpl.report.queries import class_count, class_shares, overlap_matrix
from sslpl.report.results import COLUMNS, described_results
from sslpl.report.savings import LabelSaving, label_savings
from sslpl.report.table import DASH, Bar, Name, Row, Section, Table, Text, Value, heat, matrix_table

SAVINGS = (
    "Labels at which the mean curve, linear between its points, first reaches an accuracy of random sampling; as a "
    "share of random sampling's labels; and how many seeds reach it. The speed-up factor of the results is the median "
    "share."
)
CLASSES = "Percent of each class in all queries after the initial labels."
OVERLAP = (
    "Jaccard's index of the queried images: off the diagonal of two methods with the same seed, on the diagonal of one "
    "method with two seeds. The diagonal of random sampling shows chance."
)
TIME = "Mean of a run; wall-clock time, which other work on the machine lengthens."
PHASES = ("train", "finetune", "evaluate", "query")
MOST_CLASSES = 30  # in the table of classes


def dataset_sections(comparison: DatasetComparison) -> list[Section]:
    """Returns the sections about one dataset."""
    names = [arm.name for arm in comparison.arms]
    overlap = overlap_matrix(comparison)
    highest = max((value for value in overlap.flat if not math.isnan(value)), default=1.0)
    return with_rows(
        Section("Results", [described_results([comparison], tuple(COLUMNS)[1:])]),
        Section("Label savings", [savings_table(comparison)]),
        Section("Paired tests", [tests_table(comparison)]),
        Section("Crossed options", crossed_tables(comparison)),
        Section("Wins", [wins_table(comparison), penalties_table(comparison)]),
        Section("Classes of the queries", [classes_table(comparison)]),
        Section("Overlap of the queries", [matrix_table(names, overlap, OVERLAP, highest)]),
        Section("Time by phase", [time_table(comparison)]),
        Section("Status", [status_table(comparison)]),
    )


def with_rows(*sections: Section) -> list[Section]:
    """Returns the sections that have a table with rows."""
    return [section for section in sections if any(table.rows for table in section.tables)]


def savings_table(comparison: DatasetComparison) -> Table:
    """Returns the table of labels that the arms with the same baseline need for the accuracies of random sampling."""
    by_arm = [(arm, label_savings(comparison, arm)) for arm in comparison.arms]
    usual = next((savings for _, savings in by_arm if savings), [])
    rows: list[Row] = [
        [Name(arm.name, True), *(saving_at_cell(saving, len(arm.runs)) for saving in savings)]
        for arm, savings in by_arm
        if savings and [s.target for s in savings] == [s.target for s in usual]
    ]
    return Table(["", *(Text(f"{100 * s.target:.1f}%", f"random: {s.random:,.0f}") for s in usual)], rows, SAVINGS)


def saving_at_cell(saving: LabelSaving, seeds: int) -> Text:
    """Returns the labels for one accuracy, their share of random sampling's, and how many seeds reach it."""
    share = "" if math.isnan(saving.share) else f"{100 * saving.share:.0f}%; "
    return Text(Value(saving.labels, digits=0).text, f"{share}{saving.reached} of {seeds} seeds")


def classes_table(comparison: DatasetComparison) -> Table:
    """Returns the table of the share of each class in the queries; without rows if there are many classes."""
    classes = class_count(comparison)
    arms = comparison.arms if classes <= MOST_CLASSES else []
    shares = [class_shares(arm, classes).tolist() for arm in arms]
    highest = max(map(max, shares), default=1.0)
    rows: list[Row] = [
        [Name(arm.name), *(Value(100 * v, digits=0, heat=heat(v, highest)) for v in share)]
        for arm, share in zip(arms, shares, strict=True)
    ]
    return Table(["", *map(str, range(classes))], rows, CLASSES)


def time_table(comparison: DatasetComparison) -> Table:
    """Returns the table of the mean time of a run by phase."""
    by_arm = [(arm.name, phase_seconds(arm)) for arm in comparison.finished]
    longest = max((sum(seconds.values()) for _, seconds in by_arm), default=0.0) or 1.0
    rows: list[Row] = [
        [
            Name(name),
            Bar({phase: seconds[phase] / longest for phase in PHASES}),
            *(duration(seconds[phase]) if seconds[phase] else DASH for phase in PHASES),
        ]
        for name, seconds in by_arm
    ]
    return Table(["", "", *(Text(phase, style=phase) for phase in PHASES)], rows, TIME, style="time")


def status_table(comparison: DatasetComparison) -> Table:
    """Returns the table of the state of each run."""
    seeds = sorted({run.seed for run in comparison.runs})
    rows: list[Row] = []
    for arm in comparison.every_arm:
        runs = {run.seed: run for run in [*arm.unfinished, *arm.runs]}
        states = [(runs[seed].state, runs[seed].note) if seed in runs else ("missing", "") for seed in seeds]
        rows.append([Name(arm.name), *(Text(state, note, style=state) for state, note in states)])
    return Table(["", *(f"seed {seed}" for seed in seeds)], rows, style="status")
