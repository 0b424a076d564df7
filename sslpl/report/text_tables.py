"""Chooses the tables that are printed in the terminal and in Markdown, each with a title and a caption."""

from sslpl.report.comparison import Comparisons, DatasetComparison
from sslpl.report.factorial_tables import crossed_tables
from sslpl.report.over_datasets_tables import overall_sections
from sslpl.report.pairwise_tables import penalties_table, tests_table, wins_table
from sslpl.report.results import described_results
from sslpl.report.sections import savings_table
from sslpl.report.table import MOST_NAMED_COLUMNS, Table


def markdown_tables(comparisons: Comparisons) -> list[Table]:
    """Returns the main table, those over datasets and those of each dataset."""
    by_dataset = (
        table
        for comparison in comparisons
        for table in [
            *tables_of_pairs(comparison),
            penalties_table(comparison)._replace(title=f"{comparison.dataset}: penalty matrix"),
            savings_table(comparison)._replace(title=f"{comparison.dataset}: label savings"),
            *crossed_tables(comparison),
        ]
    )
    return with_content(described_results(comparisons), *tables_over_datasets(comparisons), *by_dataset)


def terminal_tables(comparisons: Comparisons) -> list[Table]:
    """Returns the main table, the aggregate over datasets, paired tests and wins; of wide matrices, the mean alone."""
    pairs = (table for comparison in comparisons for table in tables_of_pairs(comparison))
    tables = with_content(described_results(comparisons), *tables_over_datasets(comparisons), *pairs)
    return [first_columns(table) if is_wide(table) else table for table in tables]


def tables_over_datasets(comparisons: Comparisons) -> list[Table]:
    """Returns the tables over datasets, titled by their section."""
    return [section.tables[0]._replace(title=section.heading) for section in overall_sections(comparisons)]


def tables_of_pairs(comparison: DatasetComparison) -> list[Table]:
    """Returns the paired tests and the wins of a dataset."""
    tests, wins = tests_table(comparison), wins_table(comparison)
    return [
        tests._replace(title=f"{comparison.dataset}: paired tests"),
        wins._replace(title=f"{comparison.dataset}: win matrix"),
    ]


def with_content(*tables: Table) -> list[Table]:
    """Returns the tables that have rows."""
    return [table for table in tables if table.rows]


def is_wide(table: Table) -> bool:
    """True for a matrix that is wider than a terminal."""
    return table.style == "matrix" and len(table.header) > MOST_NAMED_COLUMNS + 2


def first_columns(table: Table) -> Table:
    """Returns a win matrix without its columns for single opponents."""
    return table._replace(header=table.header[:2], rows=[row[:2] for row in table.rows])
