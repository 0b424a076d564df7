"""The command: python -m sslpl.report FOLDER... [--output DIR] [--markdown | --latex] [--wandb ENTITY/PROJECT]."""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from sslpl.files import write_whole
from sslpl.report import tables
from sslpl.report.caveats import caveats, copies
from sslpl.report.comparison import DatasetComparison, compare_datasets
from sslpl.report.factorial import factorial
from sslpl.report.factorial_figure import draw_factorial
from sslpl.report.figures import draw_board, png
from sslpl.report.markdown import crossed_tables
from sslpl.report.page import page
from sslpl.report.read import read_runs
from sslpl.report.styles import arm_styles


def main() -> None:
    """Prints the comparison; with --output also writes the page, tables and figures. Exit code 2 for bad input."""
    options = parse_arguments()
    if missing := [str(folder) for folder in options.folder if not folder.is_dir()]:
        fail(f"no such folder: {', '.join(missing)}")
    if options.wandb:
        check_wandb(options.wandb)
    runs, damaged = read_runs(options.folder)
    if not runs:
        fail(f"no run below {', '.join(map(str, options.folder))}" + "".join(f"\n{line}" for line in damaged))
    found, damaged = compare_datasets(runs), [*damaged, *copies(runs)]
    show(found, options.markdown, options.latex)
    for line in [*damaged, *(f"{board.dataset}: {line}" for board in found for line in caveats(board))]:
        print(f"warning: {line}", file=sys.stderr)
    if options.output:
        try:
            write(found, damaged, options.output)
        except OSError as error:
            fail(f"--output {options.output}: cannot be written ({error.strerror or error})")
        print(f"written: {options.output / 'index.html'}", file=sys.stderr)
    if options.wandb:
        send(found, damaged, options.wandb)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sslpl.report", description="Compares runs, finished or not.")
    parser.add_argument("folder", nargs="+", type=Path, help="folders of runs, searched with all below them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for index.html, CSV, LaTeX and PNG files")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="make a W&B report and a workspace view there")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the tables, also of crossed options, in Markdown")
    form.add_argument("--latex", action="store_true", help="print the table in LaTeX (booktabs)")
    return parser.parse_args()


def fail(line: str, code: int = 2) -> None:
    """Ends with an exit code: 2 for bad input."""
    print(f"sslpl: {line}", file=sys.stderr)
    sys.exit(code)


def check_wandb(place: str) -> None:
    """Ends with exit code 2 unless a place is an entity and a project, and W&B's package for reports is here."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        fail(f"--wandb {place}: must be ENTITY/PROJECT, for example my-team/sslpl")
    if find_spec("wandb_workspaces") is None:
        fail("--wandb: needs the package wandb-workspaces: pip install 'wandb-workspaces>=0.4.13'")


def send(found: Sequence[DatasetComparison], damaged: Sequence[str], place: str) -> None:
    """Makes the report and the view in W&B and prints their links; exit code 1 if W&B does not take them."""
    try:
        from sslpl.report import dashboard

        for link in dashboard.saved(found, damaged, *place.split("/")):
            print(link, flush=True)
    except (Exception, SystemExit) as error:  # whatever happens inside wandb
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fail(f"--wandb {place}: {line}", 1)


def show(found: Sequence[DatasetComparison], markdown: bool, latex: bool) -> None:
    """Prints the main table, in Markdown those of crossed options too."""
    rows = tables.measured(found)
    if not rows:
        print("no finished run yet")
    elif markdown or latex:
        crossed = [text for board in found if markdown and (text := crossed_tables(board))]
        print(tables.markdown(rows) if markdown else tables.latex(rows), *crossed, sep="\n\n")
    else:
        table = Table(*(Column(name, no_wrap=True) for name in tables.SHORT_HEADER), box=None)
        for row in rows:
            table.add_row(*tables.cells(row))
        width = None if sys.stdout.isatty() else 200  # a file's lines are not cut
        Console(markup=False, highlight=False, width=width).print(table)


def write(found: Sequence[DatasetComparison], damaged: Sequence[str], folder: Path) -> None:
    """Writes the page and all that lies beside it."""
    rows, look = tables.measured(found), arm_styles(found)
    write_whole(folder / "index.html", page(found, look, damaged))
    write_whole(folder / "summary.csv", tables.summary_csv(rows))
    write_whole(folder / "summary.tex", tables.latex(rows) + "\n")
    write_whole(folder / "curves.csv", tables.curves_csv(found))
    write_whole(folder / "tests.csv", tables.tests_csv(found))
    write_whole(folder / "savings.csv", tables.savings_csv(found))
    write_whole(folder / "runs.csv", tables.runs_csv(found))
    if any(factorial(board) for board in found):
        write_whole(folder / "effects.csv", tables.effects_csv(found))
    for board in found:
        if board.lines:
            write_whole(folder / f"curves-{board.dataset}.png", png(draw_board(board, look)))
        if (crossed := factorial(board)) is not None:
            write_whole(folder / f"effects-{board.dataset}.png", png(draw_factorial(crossed, board.dataset)))


if __name__ == "__main__":
    main()
