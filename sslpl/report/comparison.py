"""Groups runs into arms, one per method and setting, and the arms of each dataset into a comparison."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from sslpl.recording.run_tables import PHASE_SECONDS, aubc
from sslpl.report.read import Run
from sslpl.report.statistics import Array, Estimate, Integers, estimate


@dataclass(frozen=True, eq=False)  # equal only to itself, so that results for an arm can be cached
class Arm:
    """Runs that differ only in their seed."""

    name: str  # the method's name, and in brackets what tells its settings apart if it has several
    method_name: str
    setting: str
    runs: list[Run]  # finished, by seed; at most one per seed
    unfinished: list[Run]

    @cached_property
    def seeds(self) -> list[int]:
        """Returns the seeds of the finished runs in ascending order."""
        return [run.seed for run in self.runs]

    @cached_property
    def protocol(self) -> dict[str, str]:
        """Returns the values that methods share in a fair comparison."""
        return self.runs[0].protocol

    @cached_property
    def areas(self) -> Array:
        """Returns the area under the budget curve, 0 to 1, of each finished run."""
        return np.array([aubc(run.rows) for run in self.runs])

    @cached_property
    def accuracies(self) -> Array:
        """Returns the test accuracies [seeds, cycles] at the numbers of labels that the finished runs share."""
        by_labels = [{row["labeled"]: row["test_accuracy"] for row in run.rows} for run in self.runs]
        return np.array([[accuracy[labeled] for labeled in self.labeled_counts] for accuracy in by_labels])

    def rows_of(self, seeds: Sequence[int]) -> Integers:
        """Returns the rows of `areas` and `accuracies` that belong to some of the arm's seeds."""
        return np.searchsorted(self.seeds, seeds)

    @cached_property
    def labeled_counts(self) -> tuple[float, ...]:
        """Returns the numbers of labels at which every finished run was tested."""
        shared = set.intersection(*({row["labeled"] for row in run.rows} for run in self.runs))
        return tuple(sorted(shared))


@dataclass(frozen=True, eq=False)
class DatasetComparison:
    """The runs of one dataset and their arms; finished arms are sorted by area under the budget curve, best first."""

    dataset: str
    arms: list[Arm]  # with a finished run, without the ceilings
    ceilings: list[Arm]  # trained on all labels
    unfinished: list[Arm]  # without a finished run
    runs: list[Run]

    @property
    def best(self) -> Arm | None:
        """Returns the arm with the largest area among those that see no hidden labels, if there is one."""
        return next((arm for arm in self.arms if not arm.runs[0].oracle_baseline), None)

    @property
    def finished(self) -> list[Arm]:
        """Returns the ceilings, then the other arms with a finished run."""
        return [*self.ceilings, *self.arms]

    @property
    def every_arm(self) -> list[Arm]:
        """Returns all arms, those without a finished run last."""
        return [*self.finished, *self.unfinished]


Comparisons = Sequence[DatasetComparison]


def compare_datasets(runs: Sequence[Run]) -> list[DatasetComparison]:
    """Compares the runs of each dataset; datasets are sorted by name."""
    by_dataset: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_dataset[run.dataset].append(run)
    return [compare_arms(dataset, by_dataset[dataset]) for dataset in sorted(by_dataset)]


def compare_arms(dataset: str, runs: Sequence[Run]) -> DatasetComparison:
    """Groups the runs of one dataset into arms and sorts these."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.folder)):
        groups[run.method_name, run.setting].append(run)
    arms = [make_arm(group, distinguishing_values(group[0], groups)) for group in groups.values()]
    finished = sorted((arm for arm in arms if arm.runs), key=lambda arm: (-area(arm).mean, arm.name))
    unfinished = sorted((arm for arm in arms if not arm.runs), key=lambda arm: (arm.name, arm.setting))
    budgeted, ceilings = ([arm for arm in finished if arm.runs[0].ceiling is ceiling] for ceiling in (False, True))
    return DatasetComparison(dataset, budgeted, ceilings, unfinished, list(runs))


def make_arm(runs: Sequence[Run], suffix: str) -> Arm:
    """Makes an arm of runs with one setting; of finished runs with the same seed (copied folders) the first is kept."""
    method_name, setting = runs[0].method_name, runs[0].setting
    finished = {run.seed: run for run in reversed(runs) if run.finished}
    name = f"{method_name} [{suffix}]" if suffix else method_name
    unfinished = [run for run in runs if not run.finished]
    return Arm(name, method_name, setting, [finished[seed] for seed in sorted(finished)], unfinished)


def distinguishing_values(run: Run, groups: dict[tuple[str, str], list[Run]]) -> str:
    """Returns what tells a run's setting from the other settings of its method, as in `training.rate=0.1`."""
    return differing_values(
        run.values, [group[0].values for (name, _), group in groups.items() if name == run.method_name]
    )


def differing_values(values: dict[str, str], others: Sequence[dict[str, str]]) -> str:
    """Returns the values that are not the same in all the others, as `key=value, ...`."""
    keys = [key for key in values if any(other.get(key) != values[key] for other in others)]
    return ", ".join(f"{key}={values[key]}" for key in keys)


@cache
def area(arm: Arm) -> Estimate:
    """Estimates the area under the budget curve (0 to 1) over an arm's seeds."""
    return estimate(arm.areas.tolist())


def final_accuracy(arm: Arm) -> Estimate:
    """Estimates the test accuracy (0 to 1) after the last cycle over an arm's seeds."""
    return estimate([run.rows[-1]["test_accuracy"] for run in arm.runs])


def cycle_mean(arm: Arm, column: str) -> Estimate | None:
    """Estimates a column's mean over the cycles of a run; None if no run has the column."""
    values = [[row[column] for row in run.rows if column in row] for run in arm.runs]
    means = [sum(cycles) / len(cycles) for cycles in values if cycles]
    return estimate(means) if means else None


def phase_seconds(arm: Arm) -> dict[str, float]:
    """Returns the mean seconds of a run in each phase."""
    rows, n = [row for run in arm.runs for row in run.rows], len(arm.runs)
    return {column.removesuffix("_seconds"): sum(row.get(column, 0.0) for row in rows) / n for column in PHASE_SECONDS}


def run_seconds(arm: Arm) -> float:
    """Returns the mean seconds of a run in all phases."""
    return sum(phase_seconds(arm).values())


@cache
def mean_curve(arm: Arm, column: str = "test_accuracy") -> list[tuple[float, Estimate]]:
    """Returns pairs (number of labels, estimate over seeds) of a column of metrics.csv."""
    by_labels = [{row["labeled"]: row[column] for row in run.rows if column in row} for run in arm.runs]
    columns = [(labeled, [run[labeled] for run in by_labels if labeled in run]) for labeled in arm.labeled_counts]
    return [(labeled, estimate(values)) for labeled, values in columns if values]
