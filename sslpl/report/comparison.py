"""Runs become lines, one for each method and setting, and lines become boards, one for each dataset."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from sslpl.recording.run_tables import PHASE_SECONDS, aubc
from sslpl.report.read import Row, Run
from sslpl.report.statistics import Estimate, estimate, labels_to_reach

BASELINE = "random"


class Arm(NamedTuple):
    """The runs that differ by their seed alone."""

    name: str  # the label, and what tells its settings apart if it has several
    label: str
    setting: str
    runs: list[Run]  # finished, by seed; at least one
    unfinished: list[Run]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its finished runs, ascending."""
        return [run.seed for run in self.runs]

    @property
    def grid(self) -> tuple[float, ...]:
        """The numbers of labels at which all of its finished runs have an accuracy."""
        shared = set.intersection(*({row["labeled"] for row in run.rows} for run in self.runs))
        return tuple(sorted(shared))


class DatasetComparison(NamedTuple):
    """The lines of a dataset, the best area under the budget curve first, and its runs."""

    dataset: str
    lines: list[Arm]  # without the ceilings
    ceilings: list[Arm]
    waiting: list[Arm]  # those without any finished run
    runs: list[Run]

    @property
    def finished(self) -> list[Arm]:
        """The ceilings and the lines."""
        return [*self.ceilings, *self.lines]


def compare_datasets(runs: Sequence[Run]) -> list[DatasetComparison]:
    """A board for each dataset, by name."""
    datasets: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        datasets[run.dataset].append(run)
    return [compare_arms(dataset, datasets[dataset]) for dataset in sorted(datasets)]


def compare_arms(dataset: str, runs: Sequence[Run]) -> DatasetComparison:
    """The runs of one dataset as lines."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.folder)):
        groups[run.label, run.setting].append(run)
    lines = [
        make_arm(label, setting, group, distinguishing_values(label, group[0], groups))
        for (label, setting), group in groups.items()
    ]
    finished = sorted((one for one in lines if one.runs), key=lambda one: (-area(one).mean, one.name))
    curves = [one for one in finished if not one.runs[0].ceiling]
    ceilings = [one for one in finished if one.runs[0].ceiling]
    return DatasetComparison(dataset, curves, ceilings, sorted(one for one in lines if not one.runs), list(runs))


def make_arm(label: str, setting: str, runs: Sequence[Run], suffix: str) -> Arm:
    """A line of runs; of two runs with the same seed (copies of a folder) the first counts."""
    finished = {run.seed: run for run in reversed(runs) if run.finished}
    name = f"{label} [{suffix}]" if suffix else label
    return Arm(name, label, setting, [finished[seed] for seed in sorted(finished)], [r for r in runs if not r.finished])


def distinguishing_values(label: str, run: Run, groups: dict[tuple[str, str], list[Run]]) -> str:
    """What tells a setting from the others of its label: `training.rate=0.1`; empty if it is the only one."""
    others = [group[0].values for (other, _), group in groups.items() if other == label]
    return differing(run.values, others)


def differing(values: dict[str, str], others: Sequence[dict[str, str]]) -> str:
    """The values that are not the same in all of the others."""
    keys = [key for key in values if any(other.get(key) != values[key] for other in others)]
    return ", ".join(f"{key}={values[key]}" for key in keys)


def area(line: Arm) -> Estimate:
    """The area under the budget curve over the seeds of a line."""
    return estimate([aubc(run.rows) for run in line.runs])


def final(line: Arm) -> Estimate:
    """The accuracy after the last cycle."""
    return estimate([run.rows[-1]["test_accuracy"] for run in line.runs])


def mean_of_cycles(line: Arm, column: str) -> Estimate | None:
    """A column averaged over the cycles of each run; None where no run has it."""
    values = [[row[column] for row in run.rows if column in row] for run in line.runs]
    means = [sum(cycles) / len(cycles) for cycles in values if cycles]
    return estimate(means) if means else None


def seconds(line: Arm) -> dict[str, float]:
    """The mean seconds of a run by phase."""
    return {
        column.removesuffix("_seconds"): sum(row.get(column, 0.0) for run in line.runs for row in run.rows)
        / len(line.runs)
        for column in PHASE_SECONDS
    }


def column_at(line: Arm, column: str, labeled: float) -> list[float]:
    """The values of a column at a number of labels, of the runs that have one."""
    rows: list[Row] = [row for run in line.runs for row in run.rows if row["labeled"] == labeled]
    return [row[column] for row in rows if column in row]


def curve(line: Arm, column: str = "test_accuracy") -> list[tuple[float, Estimate]]:
    """A column by number of labels over all the seeds of a line."""
    found = [(labeled, column_at(line, column, labeled)) for labeled in line.grid]
    return [(labeled, estimate(values)) for labeled, values in found if values]


def mean_labels(line: Arm, target: float) -> float:
    """The labels at which the mean curve reaches an accuracy; NaN if it never does."""
    points = curve(line)
    return labels_to_reach([x for x, _ in points], [e.mean for _, e in points], target)


def baseline(board: DatasetComparison, line: Arm) -> Arm | None:
    """Random sampling under the protocol of a line, if it was run with these numbers of labels."""
    same = [one for one in board.lines if one.label == BASELINE and one.runs[0].protocol == line.runs[0].protocol]
    return next((one for one in same if one.grid == line.grid), None)
