"""The tables of crossed options: means over two groups, main effects and interactions."""

from collections.abc import Callable
from itertools import combinations

from sslpl.report.comparison import DatasetComparison
from sslpl.report.factorial import METRICS, Effect, Factorial, effects, factorial, two_way
from sslpl.report.markup import DASH, heat, interval, name, number, percent, table

MEANS = "Percent, mean over the other groups and {} seeds, with its 95% interval (Student t over seeds)."
EFFECTS = (
    "In percentage points, paired over seeds, averaged over all groups that are not named. A line with one group is a "
    "main effect: the option against that of reference. A line with several is an interaction: how much more the "
    "options change together than each of them does alone. Holm's correction is over the lines with as many groups."
)


def crossed_tables(board: DatasetComparison) -> str:
    """Two-way tables and effects; nothing unless the lines cross two groups or more."""
    return "".join(crossed(board, two_way_table, effects_table, "<p>{}</p>".format))


def crossed(
    board: DatasetComparison,
    means: Callable[[Factorial, int, int, int], str],
    changes: Callable[[list[Effect]], str],
    paragraph: Callable[[str], str],
) -> list[str]:
    """The parts of what is told of crossed options, in the forms that are given; none unless there are any."""
    found = factorial(board)
    if found is None:
        return []
    metrics, pairs = range(len(METRICS)), list(combinations(range(len(found.groups)), 2))
    return [
        paragraph(MEANS.format(len(found.seeds))),
        *(means(found, *pair, metric) for metric in metrics for pair in pairs),
        paragraph(EFFECTS),
        *(changes(effects(found, metric)) for metric in metrics),
    ]


def two_way_table(found: Factorial, first: int, second: int, metric: int) -> str:
    """The mean for each pair of options of two groups."""
    cells = two_way(found, first, second, metric)
    means = [cell.mean for row in cells for cell in row]
    low, high = min(means), max(means)
    rows = [
        [name(option), *(heat(cell.mean - low, percent(cell), high - low) for cell in row)]
        for option, row in zip(found.options[first], cells, strict=True)
    ]
    caption = f"<b>{name(found.groups[first])} by {name(found.groups[second])}: {METRICS[metric]}</b>"
    return table(["", *map(name, found.options[second])], rows, caption)


def effects_table(found: list[Effect]) -> str:
    """Main effects and interactions."""
    rows = [
        [
            name(described(effect)),
            number(100 * effect.result.difference, 2) + interval(100 * effect.result.low, 100 * effect.result.high, 2),
            f"{effect.result.p:.3f}",
            f"<b>{effect.adjusted:.3f}</b>" if effect.adjusted < 0.05 else f"{effect.adjusted:.3f}",
        ]
        for effect in found
    ]
    return table(["", "change", "p", "p (Holm)"], rows, f"<b>Effects on the {found[0].metric}</b>")


def described(effect: Effect) -> str:
    """The options of an effect in words."""
    sides = [f"{group}={option} (against {usual or DASH})" for group, option, usual in effect.options]
    return " \N{MULTIPLICATION SIGN} ".join(sides)
