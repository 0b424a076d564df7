"""The main table for a console, Markdown and LaTeX, and the CSV files."""

from collections.abc import Sequence
from typing import NamedTuple

from sslpl.csv_text import csv_text
from sslpl.recording.progress import duration
from sslpl.recording.run_tables import aubc
from sslpl.report.compare import savings, tests
from sslpl.report.comparison import Arm, DatasetComparison, area, curve, final, mean_of_cycles, seconds
from sslpl.report.factorial import METRICS, effects, factorial
from sslpl.report.statistics import Estimate

HEADER = ("dataset", "label", "n", "area under the budget curve", "final accuracy", "loss rank correlation", "time")
SHORT_HEADER = (*HEADER[:3], "AUBC", "final accuracy", "rank correlation", "time")
MEASURES = ("aubc", "final_accuracy", "loss_rank_correlation")
PARTS = ("mean", "std", "low", "high")
CURVES = (
    "test_accuracy",
    "test_nll",
    "test_ece",
    "loss_rank_correlation",
    "pseudo_label_rate",
    "pseudo_label_accuracy",
)


class Measured(NamedTuple):
    """What the main table says of a line."""

    dataset: str
    line: Arm
    aubc: Estimate
    final_accuracy: Estimate
    loss_rank_correlation: Estimate | None  # averaged over the cycles of each run
    seconds: float  # of a run


def measured(boards: Sequence[DatasetComparison]) -> list[Measured]:
    """The rows of the main table."""
    return [
        Measured(
            board.dataset,
            line,
            area(line),
            final(line),
            mean_of_cycles(line, "loss_rank_correlation"),
            sum(seconds(line).values()),
        )
        for board in boards
        for line in board.finished
    ]


def percent(estimate: Estimate) -> str:
    """Mean and standard deviation in percent."""
    return f"{100 * estimate.mean:.2f} ± {100 * estimate.std:.2f}"


def cells(row: Measured) -> tuple[str, ...]:
    """A row of the main table as texts."""
    correlation = row.loss_rank_correlation
    return (
        row.dataset,
        row.line.name,
        str(len(row.line.runs)),
        percent(row.aubc),
        percent(row.final_accuracy),
        f"{correlation.mean:.3f} ± {correlation.std:.3f}" if correlation else "",
        duration(row.seconds),
    )


def markdown(rows: Sequence[Measured]) -> str:
    """The main table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(rows: Sequence[Measured]) -> str:
    """The main table in LaTeX (booktabs), the best area of each dataset's methods in bold."""
    methods = [row for row in rows if not row.line.runs[0].ceiling]
    best = {row.dataset: row.line.name for row in sorted(methods, key=lambda row: row.aubc.mean)}
    header = r"Dataset & Method & $n$ & AUBC & Final accuracy & Rank correlation \\"
    lines = [r"\begin{tabular}{llrrrr}", r"\toprule", header]
    before = None
    for row in rows:
        lines += [] if row.dataset == before else [r"\midrule"]
        dataset, name, n, *values = cells(row)[:6]
        numbers = ["$" + value.replace("±", r"\pm") + "$" if value else "--" for value in values]
        if row.line.name == best.get(row.dataset):
            numbers[0] = r"$\mathbf{" + numbers[0].strip("$").replace(r" \pm", r"} \pm") + "$"
        texts = [escaped("" if row.dataset == before else dataset), escaped(name), n, *numbers]
        lines.append(" & ".join(texts) + r" \\")
        before = row.dataset
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(
        {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}.get(c)
        or (f"\\{c}" if c in "&%$#_{}" else c)
        for c in text
    )


def summary_csv(rows: Sequence[Measured]) -> str:
    """A row per dataset, label and setting; accuracies from 0 to 1."""
    header = ["dataset", "label", "setting", "n", *(f"{m}_{part}" for m in MEASURES for part in PARTS), "seconds"]
    estimates = [(r.aubc, r.final_accuracy, r.loss_rank_correlation) for r in rows]
    values = [[value for one in three for value in parts(one)] for three in estimates]
    keys = [[r.dataset, r.line.label, r.line.setting, len(r.line.runs)] for r in rows]
    return csv_text(header, ([*k, *v, r.seconds] for k, v, r in zip(keys, values, rows, strict=True)))


def curves_csv(boards: Sequence[DatasetComparison]) -> str:
    """A row per dataset, label, setting, measure and number of labels."""
    lines = [(board.dataset, line, column) for board in boards for line in board.finished for column in CURVES]
    return csv_text(
        ["dataset", "label", "setting", "measure", "labeled", "n", *PARTS],
        (
            [dataset, line.label, line.setting, column, int(labeled), estimate.n, *parts(estimate)]
            for dataset, line, column in lines
            for labeled, estimate in curve(line, column)
        ),
    )


def tests_csv(boards: Sequence[DatasetComparison]) -> str:
    """A row per tested pair of lines: the area of the first minus that of the second."""
    header = ["dataset", "first", "second", "seeds", "difference", "low", "high", "p_t_test", "p_wilcoxon"]
    return csv_text(
        [*header, "d_z", "d_z_low", "d_z_high", "p_holm"],
        (
            [board.dataset, test.first.name, test.second.name, *test.result, test.adjusted]
            for board in boards
            for test in tests(board)
        ),
    )


def savings_csv(boards: Sequence[DatasetComparison]) -> str:
    """A row per line and accuracy that random sampling reaches: the labels that both need."""
    return csv_text(
        ["dataset", "label", "setting", "accuracy", "random", "labels", "seeds_reached", *PARTS],
        (
            [board.dataset, line.label, line.setting, s.target, s.random, s.labels, s.reached, *parts(s.seeds)]
            for board in boards
            for line in board.lines
            for s in savings(board, line)
        ),
    )


def effects_csv(boards: Sequence[DatasetComparison]) -> str:
    """A row per effect of crossed options."""
    found = [(board.dataset, crossed) for board in boards if (crossed := factorial(board)) is not None]
    return csv_text(
        ["dataset", "metric", "effect", "reference", "n", "difference", "low", "high", "p", "p_holm"],
        (
            [dataset, effect.metric]
            + [" x ".join(f"{one[0]}={one[side]}" for one in effect.options) for side in (1, 2)]
            + [*effect.result[:5], effect.adjusted]
            for dataset, crossed in found
            for metric in range(len(METRICS))
            for effect in effects(crossed, metric)
        ),
    )


def runs_csv(boards: Sequence[DatasetComparison]) -> str:
    """A row per run, whatever its state."""
    return csv_text(
        ["dataset", "label", "setting", "seed", "state", "note", "cycles", "aubc", "last_accuracy", "folder"],
        (
            [run.dataset, run.label, run.setting, run.seed, run.state, run.note, len(run.rows)]
            + ([aubc(run.rows), run.rows[-1]["test_accuracy"]] if run.rows else ["", ""])
            + [str(run.folder)]
            for board in boards
            for run in board.runs
        ),
    )


def parts(estimate: Estimate | None) -> list[float | str]:
    """Mean, standard deviation and interval, empty where there are none."""
    return [*estimate[:4]] if estimate else [""] * len(PARTS)
