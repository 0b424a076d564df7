"""Returns the tables of a dataset that compare arms in pairs: tests with the seeds that they need, wins, penalties."""

import math
from collections.abc import Sequence

import numpy as np

from sslpl.report.baselines import random_baseline
from sslpl.report.comparison import Arm, DatasetComparison
from sslpl.report.pairwise import PairedTest, paired_tests, penalty_matrix, win_matrix
from sslpl.report.statistics import SIGNIFICANT, Array, Interval
from sslpl.report.table import MINUS, Name, Row, Table, Text, Value, matrix_table

TESTS = (
    "Two-sided paired t tests of the area under the budget curve over shared seeds, in percentage points, with "
    "Holm's correction over all pairs of this dataset; d_z is the mean difference divided by its standard deviation. "
    "Wilcoxon's signed-rank test is exact, but cannot fall below 0.25 with three seeds or 0.06 with five: the t test "
    "decides, and assumes that differences are approximately normal. Seeds needed: with so many, a t test finds a true "
    "difference of this size in 80% of all experiments; the range is what the interval of d_z allows."
)
SHOWN = "Of {} pairs, those with the best method and with random sampling are shown; tests.csv has all."
WINS = (
    "Percent of (seed, cycle) pairs in which the row has a higher accuracy than the column; a tie counts half, so that "
    "50 is a draw. The mean is over the columns."
)
PENALTIES = (
    "Percent of cycles in which the row beats the column by a two-sided paired t test at 5% (Ash et al. 2020; not "
    "corrected)."
)
MOST_PAIRS = 66  # of 12 arms
MOST_SEEDS = 1000  # above, the number itself says nothing


def tests_table(comparison: DatasetComparison) -> Table:
    """Returns the table of paired tests; of many, those with the best arm and with random sampling."""
    tests = paired_tests(comparison)
    shown = main_tests(comparison, tests) if len(tests) > MOST_PAIRS else tests
    rows: list[Row] = [
        [
            Name(f"{test.first.name} {MINUS} {test.second.name}"),
            str(test.result.n),
            Value(100 * test.result.difference, 100 * test.result.low, 100 * test.result.high),
            Value(test.result.effect, test.result.effect_low, test.result.effect_high),
            Value(test.result.p, digits=3),
            Value(test.adjusted, digits=3, strong=test.adjusted < SIGNIFICANT),
            Value(test.result.wilcoxon, digits=3),
            seeds_cell(test.needed),
        ]
        for test in shown
    ]
    caption = TESTS if len(shown) == len(tests) else f"{TESTS} {SHOWN.format(len(tests))}"
    return Table(["pair", "seeds", "difference", "d_z", "p", "p (Holm)", "p (Wilcoxon)", "seeds needed"], rows, caption)


def main_tests(comparison: DatasetComparison, tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Returns the tests of the best arm and of random sampling against any other."""
    best = comparison.best
    references: tuple[Arm | None, ...] = (best, random_baseline(comparison, best)) if best else ()
    return [test for test in tests if test.first in references or test.second in references]


def seeds_cell(needed: Interval) -> Text:
    """Returns the number of seeds needed, and the range of numbers that the data allow."""
    if math.isinf(needed.high) or needed.high > MOST_SEEDS:
        return Text(count_seeds(needed.value), f"at least {needed.low:.0f}" if needed.low <= MOST_SEEDS else "")
    return Text(count_seeds(needed.value), f"{needed.low:.0f} to {needed.high:.0f}")


def count_seeds(number: float) -> str:
    """Formats a number of seeds."""
    return f"{number:.0f}" if number <= MOST_SEEDS else f"over {MOST_SEEDS:,}"


def wins_table(comparison: DatasetComparison) -> Table:
    """Returns the win matrix of a dataset with the mean over all opponents."""
    return win_matrix_table([arm.name for arm in comparison.arms], win_matrix(comparison))


def win_matrix_table(names: Sequence[str], wins: Array) -> Table:
    """Returns a win matrix in percent, with the mean of each row in front."""
    table = matrix_table(names, 100 * wins, WINS, highest=100, digits=0, title="Win matrix")
    means = [np.mean(row[~np.isnan(row)]) if not np.isnan(row).all() else math.nan for row in wins]
    rows = [[row[0], Value(100 * mean, digits=0), *row[1:]] for row, mean in zip(table.rows, means, strict=False)]
    return table._replace(header=[table.header[0], "mean", *table.header[1:]], rows=rows)


def penalties_table(comparison: DatasetComparison) -> Table:
    """Returns the penalty matrix of a dataset in percent."""
    names = [arm.name for arm in comparison.arms]
    return matrix_table(
        names, 100 * penalty_matrix(comparison), PENALTIES, highest=100, digits=0, title="Penalty matrix"
    )
