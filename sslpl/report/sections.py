"""The tables of the page."""

import math
from collections.abc import Sequence
from html import escape

from sslpl.recording.progress import duration
from sslpl.report.compare import Saving, class_shares, overlaps, penalties, ranks, savings, tests, total_penalties
from sslpl.report.comparison import Arm, DatasetComparison, area, final, mean_of_cycles, seconds
from sslpl.report.markup import DASH, MINUS, heat, interval, matrix, name, number, percent, table
from sslpl.report.styles import Style

TESTS = (
    "Two-sided paired t tests of the area under the budget curve over shared seeds, in percentage points, with "
    "Holm's correction over all pairs of this dataset; d<sub>z</sub> is the mean difference over its standard "
    "deviation. Wilcoxon's signed-rank test is exact, but cannot fall below 0.25 with three seeds or 0.06 with "
    "five: the t test decides, and assumes that differences are about normal."
)
PENALTIES = (
    "In what share of the cycles the row beats the column by a two-sided paired t test at 5% (Ash et al. 2020; "
    "not corrected)."
)
TOTAL = "Over how many datasets, each counted by the share of its cycles, the row beats the column (Ash et al. 2020)."
SAVINGS = (
    "Labels at which the mean curve, straight between its points, first reaches an accuracy of random sampling, "
    "and how many seeds reach it."
)
OVERLAP = (
    "Jaccard's index of the queried images: of two methods with the same seed; on the diagonal, of one method "
    "with two seeds. The diagonal of random sampling is chance."
)
PHASES = ("train", "finetune", "evaluate", "query")


def named(line: Arm, looks: dict[str, Style]) -> str:
    """The name of a line beside its color."""
    dot = f'<span class="dot" style="--c:{looks[line.name].color}"></span>'
    return f'<span class="named">{dot}<span>{name(line.name)}</span></span>'


def main_table(board: DatasetComparison, looks: dict[str, Style]) -> str:
    """What each line gives."""
    header = ["", "seeds", "area under the budget curve", "final accuracy", "labels for random's last accuracy"]
    rows = [
        [
            named(line, looks),
            str(len(line.runs)),
            percent(area(line)),
            percent(final(line)),
            saved(savings(board, line)),
            correlation(line),
            duration(sum(seconds(line).values())),
            gain(line),
        ]
        for line in board.finished
    ]
    caption = "Percent, mean over seeds and its 95% interval (Student t)."
    return table([*header, "loss rank correlation", "time of a run", "points gained per minute"], rows, caption)


def saved(found: Sequence[Saving]) -> str:
    """The labels that a line needs for the last accuracy of random sampling, and the share that it saves."""
    if not found:
        return DASH
    last = found[-1]
    if math.isnan(last.labels):
        return "not reached"
    share = round(100 * (1 - last.labels / last.random))
    against = f"{abs(share)}% {'more' if share < 0 else 'fewer'} than {last.random:,.0f}" if share else "as many"
    return f"{last.labels:,.0f}<small>{against}</small>"


def correlation(line: Arm) -> str:
    """The mean loss rank correlation over the cycles."""
    found = mean_of_cycles(line, "loss_rank_correlation")
    return number(found.mean, 3) + interval(found.low, found.high, 3) if found else DASH


def gain(line: Arm) -> str:
    """Percentage points between the first and the last accuracy over the minutes that it took to get there."""
    first = sum(run.rows[0]["test_accuracy"] for run in line.runs) / len(line.runs)
    minutes = sum(seconds(line).values()) / 60
    return number(100 * (final(line).mean - first) / minutes, 2) if len(line.grid) > 1 and minutes else DASH


def tests_table(board: DatasetComparison) -> str:
    """The paired tests."""
    rows = [
        [
            f"{name(test.first.name)} {MINUS} {name(test.second.name)}",
            str(test.result.n),
            number(100 * test.result.difference, 2) + interval(100 * test.result.low, 100 * test.result.high, 2),
            number(test.result.effect, 2) + interval(test.result.effect_low, test.result.effect_high, 2),
            f"{test.result.p:.3f}",
            f"<b>{test.adjusted:.3f}</b>" if test.adjusted < 0.05 else f"{test.adjusted:.3f}",
            f"{test.result.wilcoxon:.3f}",
        ]
        for test in tests(board)
    ]
    header = ["pair", "seeds", "difference", "d<sub>z</sub>", "p", "p (Holm)", "p (Wilcoxon)"]
    return table(header, rows, TESTS) if rows else ""


def penalty_table(board: DatasetComparison) -> str:
    """The penalty matrix; nothing if no pair can be compared."""
    values = penalties(board)
    return (
        matrix([line.name for line in board.lines], values, PENALTIES)
        if any(not math.isnan(v) for v in values.flat)
        else ""
    )


def savings_table(board: DatasetComparison, looks: dict[str, Style]) -> str:
    """The labels that each line needs for the accuracies that random sampling reaches."""
    found = [(line, savings(board, line)) for line in board.lines]
    usual = next((one for _, one in found if one), [])
    same = [(line, one) for line, one in found if one and one[-1].target == usual[-1].target]
    header = ["", *(f"{100 * s.target:.1f}%<small>random: {s.random:,.0f}</small>" for s in usual)]
    rows = [
        [
            named(line, looks),
            *(f"{number(s.labels, 0)}<small>{s.reached} of {len(line.runs)} seeds</small>" for s in one),
        ]
        for line, one in same
    ]
    return table(header, rows, SAVINGS) if rows else ""


def time_table(board: DatasetComparison) -> str:
    """Where the time of a run goes."""
    spent = [(line, seconds(line)) for line in board.finished]
    longest = max((sum(one.values()) for _, one in spent), default=0) or 1
    rows = [
        [
            name(line.name),
            "<td><span class='bar'>"
            + "".join(f"<i class='{p}' style='width:{100 * one[p] / longest:.2f}%'></i>" for p in PHASES)
            + "</span></td>",
            *(duration(one[phase]) if one[phase] else DASH for phase in PHASES),
        ]
        for line, one in spent
    ]
    keys = [f'<i class="key {phase}"></i>{phase}' for phase in PHASES]
    return table(["", "", *keys], rows, "Mean of a run; wall time, which other work on the machine lengthens.", "time")


def classes_table(board: DatasetComparison, classes: int) -> str:
    """The share of each class in what was queried."""
    if classes > 30:
        return ""
    shares = [(line, class_shares(line, classes)) for line in board.lines]
    highest = max((float(share.max()) for _, share in shares), default=1.0)
    rows = [[name(line.name), *(heat(v, number(100 * v, 0), highest) for v in share)] for line, share in shares]
    return table(["", *map(str, range(classes))], rows, "Percent of each class in all queries after the first labels.")


def overlap_table(board: DatasetComparison) -> str:
    """How much lines choose the same images."""
    values = overlaps(board)
    known = [v for v in values.flat if not math.isnan(v)]
    return matrix([line.name for line in board.lines], values, OVERLAP, max(known)) if known else ""


def status_table(board: DatasetComparison) -> str:
    """The state of each run."""
    seeds = sorted({run.seed for run in board.runs})
    rows = []
    for line in [*board.finished, *board.waiting]:
        runs = {run.seed: run for run in [*line.unfinished, *line.runs]}
        states = [(runs[seed].state, runs[seed].note) if seed in runs else ("missing", "") for seed in seeds]
        texts = [f"<td class='{escape(s)}'>{name(s)}<small>{name(note)}</small></td>" for s, note in states]
        rows.append([name(line.name), *texts])
    return table(["", *(f"seed {seed}" for seed in seeds)], rows, kind="status")


def ranks_table(boards: Sequence[DatasetComparison]) -> str:
    """The ranks of the methods that every dataset has; nothing for a single dataset."""
    if len(boards) < 2:
        return ""
    labels, table_of_ranks, means = ranks(list(boards))
    order = sorted(range(len(labels)), key=lambda k: (means[k], labels[k]))
    rows = [[name(labels[k]), f"{means[k]:.2f}", *(f"{row[k]:g}" for row in table_of_ranks)] for k in order]
    header = ["", "mean rank", *(name(board.dataset) for board in boards)]
    caption = "Rank by mean area under the budget curve among the methods that all datasets have; 1 is the best."
    return table(header, rows, caption) if rows else ""


def total_table(boards: Sequence[DatasetComparison]) -> str:
    """The penalty matrices of several datasets added up."""
    if len(boards) < 2:
        return ""
    labels, total = total_penalties(list(boards))
    known = any(not math.isnan(value) for value in total.flat)
    return matrix(labels, total, TOTAL, len(boards)) if known else ""
