"""Returns the tables of the report, section by section."""

import math

from sslpl.recording.progress import duration
from sslpl.report.comparison import Comparisons, DatasetComparison, phase_seconds
from sslpl.report.factorial_tables import crossed_tables
from sslpl.report.pairwise import method_ranks, paired_tests, penalty_matrix, total_penalties
from sslpl.report.queries import class_count, class_shares, overlap_matrix
from sslpl.report.results import CAPTION, COLUMNS, results_table
from sslpl.report.savings import label_savings
from sslpl.report.statistics import SIGNIFICANT
from sslpl.report.table import DASH, MINUS, Bar, Name, Row, Section, Table, Text, Value, heat, matrix_table

TESTS = (
    "Two-sided paired t tests of the area under the budget curve over shared seeds, in percentage points, with "
    "Holm's correction over all pairs of this dataset; d_z is the mean difference divided by its standard deviation. "
    "Wilcoxon's signed-rank test is exact, but cannot fall below 0.25 with three seeds or 0.06 with five: the t test "
    "decides, and assumes that differences are approximately normal."
)
PENALTIES = (
    "The share of cycles in which the row beats the column by a two-sided paired t test at 5% (Ash et al. 2020; "
    "not corrected)."
)
TOTAL = "The number of datasets on which the row beats the column, each counted as a share of cycles (Ash et al. 2020)."
RANKS = "Rank by mean area under the budget curve among the methods that all datasets have; 1 is the best."
SAVINGS = (
    "Labels at which the mean curve, linear between its points, first reaches an accuracy of random sampling, and how "
    "many seeds reach it."
)
CLASSES = "Percent of each class in all queries after the initial labels."
OVERLAP = (
    "Jaccard's index of the queried images: off the diagonal of two methods with the same seed, on the diagonal of one "
    "method with two seeds. The diagonal of random sampling shows chance."
)
TIME = "Mean of a run; wall-clock time, which other work on the machine lengthens."
PHASES = ("train", "finetune", "evaluate", "query")
MOST_CLASSES = 30  # in the table of classes


def overall_sections(comparisons: Comparisons) -> list[Section]:
    """Returns the sections about several datasets together; none for a single dataset."""
    if len(comparisons) < 2:
        return []
    methods, penalties = total_penalties(comparisons)
    return with_rows(
        Section("Ranks over datasets", [ranks_table(comparisons)]),
        Section("Penalties over datasets", [matrix_table(methods, penalties, TOTAL, len(comparisons))]),
    )


def dataset_sections(comparison: DatasetComparison) -> list[Section]:
    """Returns the sections about one dataset."""
    names = [arm.name for arm in comparison.arms]
    overlap, results = overlap_matrix(comparison), results_table([comparison], tuple(COLUMNS)[1:])
    highest = max((value for value in overlap.flat if not math.isnan(value)), default=1.0)
    return with_rows(
        Section("Results", [results._replace(caption=CAPTION)]),
        Section("Label savings", [savings_table(comparison)]),
        Section("Paired tests", [tests_table(comparison)]),
        Section("Crossed options", crossed_tables(comparison)),
        Section("Penalty matrix", [matrix_table(names, penalty_matrix(comparison), PENALTIES)]),
        Section("Classes of the queries", [classes_table(comparison)]),
        Section("Overlap of the queries", [matrix_table(names, overlap, OVERLAP, highest)]),
        Section("Time by phase", [time_table(comparison)]),
        Section("Status", [status_table(comparison)]),
    )


def with_rows(*sections: Section) -> list[Section]:
    """Returns the sections that have a table with rows."""
    return [section for section in sections if any(table.rows for table in section.tables)]


def ranks_table(comparisons: Comparisons) -> Table:
    """Returns the table of ranks of the methods that all datasets have, the best mean rank first."""
    methods, by_dataset, means = method_ranks(comparisons)
    order = sorted(range(len(methods)), key=lambda k: (means[k], methods[k]))
    rows: list[Row] = [
        [Name(methods[k]), f"{means[k]:.2f}", *(f"{rank:g}" for rank in by_dataset[:, k])] for k in order
    ]
    return Table(["", "mean rank", *(Name(comparison.dataset) for comparison in comparisons)], rows, RANKS)


def savings_table(comparison: DatasetComparison) -> Table:
    """Returns the table of labels that the arms with the same baseline need for the accuracies of random sampling."""
    by_arm = [(arm, label_savings(comparison, arm)) for arm in comparison.arms]
    usual = next((savings for _, savings in by_arm if savings), [])
    rows: list[Row] = [
        [
            Name(arm.name, True),
            *(Text(Value(s.labels, digits=0).text, f"{s.reached} of {len(arm.runs)} seeds") for s in savings),
        ]
        for arm, savings in by_arm
        if savings and [s.target for s in savings] == [s.target for s in usual]
    ]
    return Table(["", *(Text(f"{100 * s.target:.1f}%", f"random: {s.random:,.0f}") for s in usual)], rows, SAVINGS)


def tests_table(comparison: DatasetComparison) -> Table:
    """Returns the table of paired tests."""
    rows: list[Row] = [
        [
            Name(f"{test.first.name} {MINUS} {test.second.name}"),
            str(test.result.n),
            Value(100 * test.result.difference, 100 * test.result.low, 100 * test.result.high),
            Value(test.result.effect, test.result.effect_low, test.result.effect_high),
            Value(test.result.p, digits=3),
            Value(test.adjusted, digits=3, strong=test.adjusted < SIGNIFICANT),
            Value(test.result.wilcoxon, digits=3),
        ]
        for test in paired_tests(comparison)
    ]
    return Table(["pair", "seeds", "difference", "d_z", "p", "p (Holm)", "p (Wilcoxon)"], rows, TESTS)


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
