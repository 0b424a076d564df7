"""The page: one HTML file that needs nothing but itself."""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from sslpl.report import sections
from sslpl.report.caveats import caveats
from sslpl.report.charts import chart_data
from sslpl.report.comparison import DatasetComparison
from sslpl.report.factorial_tables import crossed_tables
from sslpl.report.markup import section
from sslpl.report.styles import Style


def page(boards: Sequence[DatasetComparison], looks: dict[str, Style], damaged: Sequence[str]) -> str:
    """The whole page; `damaged` are lines about folders that could not be read."""
    data = json.dumps([chart_data(board, looks, classes(board)) for board in boards], allow_nan=False)
    parts = {
        "title": f"Comparison of {sum(len(board.runs) for board in boards)} runs",
        "style": own("page.css"),
        "script": own("page.js"),
        "content": content(boards, looks, damaged),
        "data": data.replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], own("page.html"))


def own(name: str) -> str:
    """A file of this package."""
    return files("sslpl.report").joinpath(name).read_text(encoding="utf-8")


def content(boards: Sequence[DatasetComparison], looks: dict[str, Style], damaged: Sequence[str]) -> str:
    """The body of the page."""
    runs = [run for board in boards for run in board.runs]
    links = "".join(f'<a href="#board-{k}">{escape(board.dataset)}</a>' for k, board in enumerate(boards))
    return "\n".join(
        [
            f"<h1>{len(runs)} runs, {sum(run.finished for run in runs)} of them finished</h1>",
            f"<nav>{links}</nav>" if len(boards) > 1 else "",
            notice(damaged),
            section("Ranks over datasets", sections.ranks_table(boards)),
            section("Penalties over datasets", sections.total_table(boards)),
            *(board_content(board, k, looks) for k, board in enumerate(boards)),
        ]
    )


def board_content(board: DatasetComparison, k: int, looks: dict[str, Style]) -> str:
    """The part of the page on one dataset."""
    parts = [
        f'<article id="board-{k}"><h2>{escape(board.dataset)}</h2>',
        notice(caveats(board)),
        "<p>Mean over seeds, band: its 95% interval. Choose the methods here; point at a chart for its values.</p>",
        '<div class="legend"></div><div class="charts"></div>',
    ]
    if board.finished:
        parts += [
            section("Results", sections.main_table(board, looks)),
            section("Label savings", sections.savings_table(board, looks)),
            section("Paired tests", sections.tests_table(board)),
            section("Crossed options", crossed_tables(board)),
            section("Penalty matrix", sections.penalty_table(board)),
            section("Classes of the queries", sections.classes_table(board, classes(board))),
            section("Overlap of the queries", sections.overlap_table(board)),
            section("Time by phase", sections.time_table(board)),
        ]
    return "\n".join([*parts, section("Status", sections.status_table(board)), "</article>"])


def notice(lines: Sequence[str]) -> str:
    """Warnings as a list; nothing if there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<aside><b>Before you compare</b><ul>{items}</ul></aside>" if lines else ""


def classes(board: DatasetComparison) -> int:
    """How many classes the labels of a board's runs show."""
    return 1 + max((int(run.queries.label.max()) for run in board.runs if len(run.queries.label)), default=1)
