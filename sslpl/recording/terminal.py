"""The console, and the result of a finished run as it is printed there."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table

Row = Mapping[str, float | int | None]

KEY_COLUMNS = ["cycle", "labeled"]
METRIC_COLUMNS = [
    *("test_accuracy", "test_macro_f1", "test_nll", "test_ece", "loss_rank_correlation"),
    *("pseudo_label_rate", "pseudo_label_accuracy"),
    *("wasted_label_rate", "annotator_kappa", "label_accuracy"),
    *("train_seconds", "finetune_seconds", "evaluate_seconds", "query_seconds"),
]


def format_cell(row: Row, key: str) -> str:
    """Formats one value of a row: empty if it is missing or not finite; cycles are counted from 1."""
    value = row.get(key)
    if value is None or not math.isfinite(value):
        return ""
    if key in ("cycle", "labeled"):
        return f"{int(value) + (key == 'cycle'):,}"
    percent = key.endswith(("accuracy", "f1", "rate"))
    return f"{value:.2%}" if percent else f"{value:,.1f}" if key.endswith("seconds") else f"{value:.3f}"


def cycles_table(rows: Sequence[Row], width: int = 120) -> Group:
    """Returns the metrics of all cycles, split into several tables if one would exceed `width` characters."""
    texts = {key: [format_cell(row, key) for row in rows] for key in [*KEY_COLUMNS, *METRIC_COLUMNS]}
    widths = {key: 3 + max(map(len, [*key.split("_"), *column])) for key, column in texts.items()}
    groups = [[*KEY_COLUMNS]]
    for key in (key for key in METRIC_COLUMNS if any(texts[key])):
        if len(groups[-1]) > len(KEY_COLUMNS) and sum(widths[column] for column in [*groups[-1], key]) > width:
            groups.append([*KEY_COLUMNS])
        groups[-1].append(key)
    tables = [Table(box=box.SIMPLE_HEAD, show_edge=False) for _ in groups]
    for table, group in zip(tables, groups, strict=True):
        for key in group:
            table.add_column(key.replace("_", "\n"), justify="right", vertical="bottom", overflow="fold")
        for cells in zip(*(texts[key] for key in group), strict=True):
            table.add_row(*(text or "-" for text in cells))
    return Group(*(part for table in tables for part in (table, "")))


def print_result(console: Console, rows: Sequence[Row], folder: Path, aubc: float | None) -> None:
    """Prints the metrics of a finished run and the folder of its files."""
    console.print("", cycles_table(rows, console.width), sep="\n")
    if aubc is not None and math.isfinite(aubc):
        console.print(f"area under the budget curve  {aubc:.2%}", highlight=False)
    # The path is not wrapped, so that it can be copied.
    console.print(f"files  {folder}", markup=False, highlight=False, soft_wrap=True)


class Terminal(Console):
    """A console that discards its output, instead of raising, once its reader has exited (`| head`)."""

    def on_broken_pipe(self) -> None:
        """Discards all further output."""
        self.quiet = True
        silence_stdout()


def silence_stdout() -> None:
    """Redirects standard output to the null device, because its reader has exited."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
