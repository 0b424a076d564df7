"""Returns the tables of crossed options: means by two groups, main effects and interactions."""

from collections.abc import Sequence
from itertools import combinations

from sslpl.report.comparison import DatasetComparison
from sslpl.report.factorial import METRICS, Effect, Factorial, effects, full_factorial, two_way_means
from sslpl.report.statistics import SIGNIFICANT
from sslpl.report.table import DASH, Name, Row, Table, Value, heat, percent_value

MEANS = "Percent, mean over the other groups and {} seeds, with its 95% interval (Student t over seeds)."
EFFECTS = (
    "In percentage points, paired over seeds, averaged over all groups that are not named. A row with one group is a "
    "main effect: the option compared with the reference. A row with several groups is an interaction: how much more "
    "the options change together than each of them does alone. Holm's correction is over the rows with as many groups."
)


def crossed_tables(comparison: DatasetComparison) -> list[Table]:
    """Returns the two-way tables and the tables of effects; none unless the arms are a full factorial."""
    factorial = full_factorial(comparison)
    if factorial is None:
        return []
    metrics, pairs = range(len(METRICS)), list(combinations(range(len(factorial.groups)), 2))
    means = [two_way_table(factorial, *pair, metric) for metric in metrics for pair in pairs]
    changes = [effects_table(effects(factorial, metric)) for metric in metrics]
    means[0] = means[0]._replace(caption=MEANS.format(len(factorial.seeds)))
    changes[0] = changes[0]._replace(caption=EFFECTS)
    return [*means, *changes]


def two_way_table(factorial: Factorial, first: int, second: int, metric: int) -> Table:
    """Returns the table of the mean for each pair of options of two groups."""
    estimates = two_way_means(factorial, first, second, metric)
    means = [estimate.mean for row in estimates for estimate in row]
    low, span = min(means), max(means) - min(means)
    rows: list[Row] = [
        [Name(option), *(percent_value(e, heat=heat(e.mean - low, span)) for e in row)]
        for option, row in zip(factorial.options[first], estimates, strict=True)
    ]
    title = f"{factorial.groups[first]} by {factorial.groups[second]}: {METRICS[metric]}"
    return Table(["", *map(Name, factorial.options[second])], rows, title=title)


def effects_table(changes: Sequence[Effect]) -> Table:
    """Returns the table of main effects and interactions on one metric."""
    rows: list[Row] = [
        [
            Name(describe_effect(effect)),
            Value(100 * effect.result.difference, 100 * effect.result.low, 100 * effect.result.high),
            Value(effect.result.p, digits=3),
            Value(effect.adjusted, digits=3, strong=effect.adjusted < SIGNIFICANT),
        ]
        for effect in changes
    ]
    return Table(["", "change", "p", "p (Holm)"], rows, title=f"Effects on the {changes[0].metric}")


def describe_effect(effect: Effect) -> str:
    """Names the options of an effect and their references."""
    parts = [f"{group}={option} (against {reference or DASH})" for group, option, reference in effect.options]
    return " \N{MULTIPLICATION SIGN} ".join(parts)
