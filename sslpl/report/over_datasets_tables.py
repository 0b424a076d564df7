"""Returns the tables about several datasets together."""

import numpy as np

from sslpl.report.comparison import Comparisons
from sslpl.report.over_datasets import aggregates, mean_wins, method_ranks, total_penalties
from sslpl.report.pairwise_tables import win_matrix_table
from sslpl.report.table import Name, Row, Section, Table, drop_empty_columns, matrix_table, percent_interval

AGGREGATES = (
    "Interquartile means: the mean of the middle half of a method's runs on all datasets, which no single run or "
    "dataset decides; ranges are 95% intervals by a bootstrap over the seeds of each dataset (Agarwal et al. 2021). "
    "In percent: the AUBC, its difference to random sampling with the same seed, and the share of the attainable gain "
    "(0 is random sampling, 100 the best baseline that sees the hidden labels)."
)
RANKS = "Rank by mean area under the budget curve among the methods that all datasets have; 1 is the best."
TOTAL = "The number of datasets on which the row beats the column, each counted as a share of cycles (Ash et al. 2020)."


def overall_sections(comparisons: Comparisons) -> list[Section]:
    """Returns the sections about several datasets together; none for a single dataset or without shared methods."""
    if len(comparisons) < 2:
        return []
    sections = [
        Section("Aggregate over datasets", [aggregates_table(comparisons)]),
        Section("Ranks over datasets", [ranks_table(comparisons)]),
        Section("Wins over datasets", win_tables(comparisons)),
    ]
    return [section for section in sections if section.tables[0].rows]


def win_tables(comparisons: Comparisons) -> list[Table]:
    """Returns the mean of the win matrices and the sum of the penalty matrices; methods with the most wins first."""
    (methods, wins), (_, penalties) = mean_wins(comparisons), total_penalties(comparisons)
    order = np.argsort(-np.nansum(wins, axis=1), kind="stable")
    names, square = [methods[k] for k in order], np.ix_(order, order)
    total = matrix_table(names, penalties[square], TOTAL, len(comparisons), title="Penalty matrix")
    return [win_matrix_table(names, wins[square]), total]


def aggregates_table(comparisons: Comparisons) -> Table:
    """Returns the table of interquartile means of the methods that all datasets have, the best first."""
    rows: list[Row] = [
        [
            Name(found.method, True),
            str(found.runs),
            percent_interval(found.area),
            percent_interval(found.gain),
            percent_interval(found.attainable, digits=0),
        ]
        for found in aggregates(comparisons)
    ]
    return drop_empty_columns(Table(["", "runs", "AUBC", "gain over random", "attainable gain"], rows, AGGREGATES))


def ranks_table(comparisons: Comparisons) -> Table:
    """Returns the table of ranks of the methods that all datasets have, the best mean rank first."""
    methods, by_dataset, means = method_ranks(comparisons)
    order = sorted(range(len(methods)), key=lambda k: (means[k], methods[k]))
    rows: list[Row] = [
        [Name(methods[k]), f"{means[k]:.2f}", *(f"{rank:g}" for rank in by_dataset[:, k])] for k in order
    ]
    return Table(["", "mean rank", *(Name(comparison.dataset) for comparison in comparisons)], rows, RANKS)
