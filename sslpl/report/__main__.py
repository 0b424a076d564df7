"""Compares runs: python -m sslpl.report FOLDER... [--output DIR] [--markdown | --latex] [--wandb ENTITY/PROJECT]."""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from sslpl.files import write_whole
from sslpl.messages import exit_with_error
from sslpl.report.caveats import caveats, duplicate_runs
from sslpl.report.comparison import Comparisons, compare_datasets
from sslpl.report.csv_files import csv_files
from sslpl.report.factorial import full_factorial
from sslpl.report.figures import draw_comparison, draw_factorial, png_bytes
from sslpl.report.page import render_page
from sslpl.report.read import read_runs
from sslpl.report.render import render_latex, render_markdown, render_terminal
from sslpl.report.results import LATEX_COLUMNS, results_table
from sslpl.report.styles import arm_styles
from sslpl.report.text_tables import markdown_tables, terminal_tables


def main() -> None:
    """Prints the comparison; with --output also writes the page, tables and figures. Exit code 2 for bad input."""
    options = parse_options()
    if missing := [str(folder) for folder in options.folder if not folder.is_dir()]:
        exit_with_error(f"no such folder: {', '.join(missing)}")
    if options.wandb:
        check_wandb_option(options.wandb)
    runs, warnings = read_runs(options.folder)
    if not runs:
        exit_with_error(
            f"no run below {', '.join(map(str, options.folder))}" + "".join(f"\n{line}" for line in warnings)
        )
    comparisons, warnings = compare_datasets(runs), [*warnings, *duplicate_runs(runs)]
    print_tables(comparisons, options.markdown, options.latex)
    for line in [*warnings, *(f"{c.dataset}: {line}" for c in comparisons for line in caveats(c))]:
        print(f"warning: {line}", file=sys.stderr)
    if options.output:
        try:
            write_report(comparisons, warnings, options.output)
        except OSError as error:
            exit_with_error(f"--output {options.output}: cannot be written ({error.strerror or error})")
        print(f"written: {options.output / 'index.html'}", file=sys.stderr)
    if options.wandb:
        save_online(comparisons, warnings, options.wandb)


def parse_options() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m sslpl.report", description="Compares runs, finished or not.")
    parser.add_argument("folder", nargs="+", type=Path, help="folders of runs, searched with all below them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for index.html, CSV, LaTeX and PNG files")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="make a W&B report and a workspace view there")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    formats.add_argument("--latex", action="store_true", help="print the table in LaTeX (booktabs)")
    return parser.parse_args()


def check_wandb_option(project: str) -> None:
    """Exits with code 2 unless the option is ENTITY/PROJECT and the package for W&B reports is installed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", project):
        exit_with_error(f"--wandb {project}: must be ENTITY/PROJECT, for example my-team/sslpl")
    if find_spec("wandb_workspaces") is None:
        exit_with_error("--wandb: needs the package wandb-workspaces: pip install 'wandb-workspaces>=0.4.13'")


def save_online(comparisons: Comparisons, warnings: Sequence[str], project: str) -> None:
    """Saves the report and the view to W&B and prints their links; exit code 1 if W&B raises an error."""
    try:
        from sslpl.report.dashboard import save_to_wandb

        for link in save_to_wandb(comparisons, warnings, *project.split("/")):
            print(link, flush=True)
    except (Exception, SystemExit) as error:  # wandb may raise anything
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        exit_with_error(f"--wandb {project}: {line}", 1)


def print_tables(comparisons: Comparisons, markdown: bool, latex: bool) -> None:
    """Prints the tables of the comparison; in LaTeX the main one alone."""
    if not any(comparison.finished for comparison in comparisons):
        print("no finished run yet")
    elif markdown:
        print("\n\n".join(map(render_markdown, markdown_tables(comparisons))))
    elif latex:
        print(render_latex(results_table(comparisons, LATEX_COLUMNS)))
    else:
        width = None if sys.stdout.isatty() else 200  # lines of a file are not cut off
        console = Console(markup=False, highlight=False, width=width)
        for table in terminal_tables(comparisons):
            console.print(f"\n{table.title}" if table.title else "", style="bold")
            console.print(render_terminal(table))
            console.print(table.caption, style="dim")


def write_report(comparisons: Comparisons, warnings: Sequence[str], folder: Path) -> None:
    """Writes the page, the CSV and LaTeX files and the figures."""
    styles = arm_styles(comparisons)
    latex = render_latex(results_table(comparisons, LATEX_COLUMNS))
    files: dict[str, str | bytes] = {
        "index.html": render_page(comparisons, styles, warnings),
        "summary.tex": latex + "\n",
    }
    files |= csv_files(comparisons)
    for comparison in comparisons:
        if comparison.arms:
            files[f"curves-{comparison.dataset}.png"] = png_bytes(draw_comparison(comparison, styles))
        if (factorial := full_factorial(comparison)) is not None:
            files[f"effects-{comparison.dataset}.png"] = png_bytes(draw_factorial(factorial, comparison.dataset))
    for name, content in files.items():
        write_whole(folder / name, content)


if __name__ == "__main__":
    main()
