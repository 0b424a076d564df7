"""What makes runs hard to compare, a line each."""

from collections import Counter
from collections.abc import Iterator, Sequence

from sslpl.report.comparison import DatasetComparison, differing
from sslpl.report.read import Run


def caveats(board: DatasetComparison) -> list[str]:
    """The reasons to be careful with a board."""
    return [*origins(board), *protocols(board), *settings(board), *budgets(board), *seeds(board), *unfinished(board)]


def origins(board: DatasetComparison) -> Iterator[str]:
    """Runs of several commits, versions or devices, and of a commit with changes."""
    for key in sorted({key for run in board.runs for key in run.origin}):
        found = Counter(run.origin.get(key, "unknown") for run in board.runs)
        if key == "uncommitted changes":
            if found["yes"]:
                n = f"{found['yes']} of {len(board.runs)} runs"
                yield f"{n} had uncommitted changes: their commit does not say which code ran"
        elif len(found) > 1:
            yield f"not all of one {key}: " + ", ".join(f"{value} ({n})" for value, n in found.most_common())


def protocols(board: DatasetComparison) -> Iterator[str]:
    """Lines that differ in what methods should share; ceilings by nothing but the budget."""
    for lines in (board.lines, board.ceilings):
        shared = [line.runs[0].protocol for line in lines]
        keys = sorted({key for one in shared for key in one if any(other.get(key) != one[key] for other in shared)})
        if keys:
            yield f"not all of one protocol: {', '.join(keys)}; only lines of one protocol or one label are tested"
    for line in board.ceilings[:1]:
        usual = [schedule(other.runs[0]) for other in board.lines]
        if usual and schedule(line.runs[0]) not in usual:
            yield f"{line.name} was trained otherwise than the rest: {differing(schedule(line.runs[0]), usual)}"


def schedule(run: Run) -> dict[str, str]:
    """Its protocol without the budget."""
    return {key: value for key, value in run.protocol.items() if not key.startswith("budget.")}


def settings(board: DatasetComparison) -> Iterator[str]:
    """Labels with several settings."""
    for label, n in Counter(line.label for line in [*board.finished, *board.waiting]).items():
        if n > 1:
            yield f"{label} has {n} settings, which are kept apart"


def budgets(board: DatasetComparison) -> Iterator[str]:
    """Other numbers of labels: areas under curves over other ranges are not to be compared."""
    grids = Counter(line.grid for line in board.lines)
    if len(grids) > 1:
        usual = grids.most_common(1)[0][0]
        names = [line.name for line in board.lines if line.grid != usual]
        yield f"other numbers of labels than the rest: {', '.join(names)}; areas are over other ranges there"


def seeds(board: DatasetComparison) -> Iterator[str]:
    """Seeds that a line lacks and others have, and lines with a single one."""
    every = sorted({seed for line in board.finished for seed in line.seeds})
    for line in board.finished:
        if missing := [str(seed) for seed in every if seed not in line.seeds]:
            yield f"{line.name} has no finished run of seed {', '.join(missing)}"
    if single := [line.name for line in board.finished if len(line.runs) == 1]:
        yield f"a single seed, so no interval and no test: {', '.join(single)}"


def unfinished(board: DatasetComparison) -> Iterator[str]:
    """How many runs do not count yet, by state."""
    found = Counter(run.state for run in board.runs if not run.finished)
    if found:
        yield "not finished and left out: " + ", ".join(f"{n} {state}" for state, n in sorted(found.items()))


def copies(runs: Sequence[Run]) -> list[str]:
    """A line for each run that is there more than once."""
    found = Counter((run.dataset, run.label, run.setting, run.seed) for run in runs if run.finished)
    return [
        f"{d}/{label}, seed {seed}: {n} copies, the first counts" for (d, label, _, seed), n in found.items() if n > 1
    ]
