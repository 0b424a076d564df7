"""The page's tables in Markdown, to paste and for a W&B report."""

import math
import re
from collections.abc import Sequence

from sslpl.report import factorial_tables, sections, tables
from sslpl.report.compare import ranks, savings, tests
from sslpl.report.comparison import DatasetComparison
from sslpl.report.factorial import METRICS, Effect, Factorial, two_way
from sslpl.report.markup import MINUS, number


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table below its caption; nothing without rows."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{plain(caption)}\n\n{text}" if rows and caption else text if rows else ""


def plain(html: str) -> str:
    """A caption of the page without its tags."""
    return re.sub(r"<[^>]+>", "", html)


def main_table(board: DatasetComparison) -> str:
    """What each line gives, mean and standard deviation over seeds; nothing before the first run is finished."""
    rows = tables.measured([board])
    return tables.markdown(rows) if rows else ""


def savings_table(board: DatasetComparison) -> str:
    """The labels that each line needs for the accuracies that random sampling reaches."""
    found = [(line, savings(board, line)) for line in board.lines]
    usual = next((one for _, one in found if one), [])
    rows = [
        [line.name, *(f"{number(s.labels, 0)} ({s.reached} of {len(line.runs)} seeds)" for s in one)]
        for line, one in found
        if one and [s.target for s in one] == [s.target for s in usual]
    ]
    header = ["accuracy, labels of random", *(f"{100 * s.target:.1f}%, {s.random:,.0f}" for s in usual)]
    return table(header, rows, sections.SAVINGS)


def tests_table(board: DatasetComparison) -> str:
    """The paired tests."""
    rows = [
        [
            f"{test.first.name} {MINUS} {test.second.name}",
            str(test.result.n),
            between(100 * test.result.difference, 100 * test.result.low, 100 * test.result.high),
            between(test.result.effect, test.result.effect_low, test.result.effect_high),
            *(f"{p:.3f}" for p in (test.result.p, test.adjusted, test.result.wilcoxon)),
        ]
        for test in tests(board)
    ]
    return table(["pair", "seeds", "difference", "dz", "p", "p (Holm)", "p (Wilcoxon)"], rows, sections.TESTS)


def crossed_tables(board: DatasetComparison) -> str:
    """Two-way tables and effects; nothing unless the lines cross two groups or more."""
    return "\n\n".join(factorial_tables.crossed(board, two_way_table, effects_table, str))


def two_way_table(found: Factorial, first: int, second: int, metric: int) -> str:
    """The mean for each pair of options of two groups."""
    cells = two_way(found, first, second, metric)
    rows = [
        [option, *(between(100 * cell.mean, 100 * cell.low, 100 * cell.high) for cell in row)]
        for option, row in zip(found.options[first], cells, strict=True)
    ]
    caption = f"**{found.groups[first]} by {found.groups[second]}: {METRICS[metric]}**"
    return table(["", *found.options[second]], rows, caption)


def effects_table(found: list[Effect]) -> str:
    """Main effects and interactions."""
    rows = [
        [
            factorial_tables.described(effect),
            between(100 * effect.result.difference, 100 * effect.result.low, 100 * effect.result.high),
            f"{effect.result.p:.3f}",
            f"{effect.adjusted:.3f}",
        ]
        for effect in found
    ]
    return table(["", "change", "p", "p (Holm)"], rows, f"**Effects on the {found[0].metric}**")


def between(value: float, low: float, high: float) -> str:
    """A value with its interval."""
    return number(value, 2) + ("" if math.isnan(low) else f" ({number(low, 2)} to {number(high, 2)})")


def ranks_table(boards: Sequence[DatasetComparison]) -> str:
    """The ranks of the methods that every dataset has; nothing for a single dataset."""
    labels, by_dataset, means = ranks(list(boards))
    order = sorted(range(len(labels)), key=lambda k: (means[k], labels[k]))
    rows = [[labels[k], f"{means[k]:.2f}", *(f"{row[k]:g}" for row in by_dataset)] for k in order]
    caption = "Rank by mean area under the budget curve among the methods that all datasets have; 1 is the best."
    return table(["", "mean rank", *(board.dataset for board in boards)], rows, caption) if len(boards) > 1 else ""
