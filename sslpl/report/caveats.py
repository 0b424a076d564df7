"""Describes what makes runs hard to compare, one line for each reason."""

from collections import Counter
from collections.abc import Iterator, Sequence

from sslpl.report.comparison import DatasetComparison, differing_values
from sslpl.report.read import Run


def caveats(comparison: DatasetComparison) -> list[str]:
    """Returns all reasons to be careful with the comparison of a dataset."""
    checks = (mixed_provenance, mixed_protocols, multiple_settings, mixed_budgets, missing_seeds, unfinished_runs)
    return [line for check in checks for line in check(comparison)]


def mixed_provenance(comparison: DatasetComparison) -> Iterator[str]:
    """Reports runs of different commits, versions or devices, and commits with uncommitted changes."""
    for key in sorted({key for run in comparison.runs for key in run.provenance}):
        counts = Counter(run.provenance.get(key, "unknown") for run in comparison.runs)
        if key == "uncommitted changes":
            if counts["yes"]:
                n = f"{counts['yes']} of {len(comparison.runs)} runs"
                yield f"{n} had uncommitted changes: their commit does not identify the code that ran"
        elif len(counts) > 1:
            yield f"not all of one {key}: " + ", ".join(f"{value} ({n})" for value, n in counts.most_common())


def mixed_protocols(comparison: DatasetComparison) -> Iterator[str]:
    """Reports arms that differ in what methods should share; ceilings may differ from the others in the budget."""
    for arms in (comparison.arms, comparison.ceilings):
        protocols = [arm.runs[0].protocol for arm in arms]
        keys = sorted({key for p in protocols for key in p if any(other.get(key) != p[key] for other in protocols)})
        if keys:
            yield f"not all of one protocol: {', '.join(keys)}; only arms with one protocol or one method are tested"
    for arm in comparison.ceilings[:1]:
        usual = [unbudgeted_protocol(other.runs[0]) for other in comparison.arms]
        protocol = unbudgeted_protocol(arm.runs[0])
        if usual and protocol not in usual:
            yield f"{arm.name} was trained differently from the rest: {differing_values(protocol, usual)}"


def unbudgeted_protocol(run: Run) -> dict[str, str]:
    """Returns a run's protocol without the budget."""
    return {key: value for key, value in run.protocol.items() if not key.startswith("budget.")}


def multiple_settings(comparison: DatasetComparison) -> Iterator[str]:
    """Reports methods with several settings."""
    for method, n in Counter(arm.method_name for arm in comparison.every_arm).items():
        if n > 1:
            yield f"{method} has {n} settings, which are kept apart"


def mixed_budgets(comparison: DatasetComparison) -> Iterator[str]:
    """Reports arms with other numbers of labels: areas under curves over different ranges cannot be compared."""
    counts = Counter(arm.labeled_counts for arm in comparison.arms)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        names = [arm.name for arm in comparison.arms if arm.labeled_counts != usual]
        yield f"other numbers of labels than the rest: {', '.join(names)}; their areas cover other ranges"


def missing_seeds(comparison: DatasetComparison) -> Iterator[str]:
    """Reports seeds that an arm lacks and others have, and arms with a single seed."""
    every = sorted({seed for arm in comparison.finished for seed in arm.seeds})
    for arm in comparison.finished:
        if missing := [str(seed) for seed in every if seed not in arm.seeds]:
            yield f"{arm.name} has no finished run of seed {', '.join(missing)}"
    if single := [arm.name for arm in comparison.finished if len(arm.runs) == 1]:
        yield f"a single seed, so no interval and no test: {', '.join(single)}"


def unfinished_runs(comparison: DatasetComparison) -> Iterator[str]:
    """Reports how many runs are left out because they are not finished, by state."""
    counts = Counter(run.state for run in comparison.runs if not run.finished)
    if counts:
        yield "not finished and left out: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def duplicate_runs(runs: Sequence[Run]) -> list[str]:
    """Returns a line for each finished run with several copies."""
    counts = Counter((run.dataset, run.method_name, run.setting, run.seed) for run in runs if run.finished)
    return [
        f"{dataset}/{method}, seed {seed}: {n} copies, only the first counts"
        for (dataset, method, _, seed), n in counts.items()
        if n > 1
    ]
