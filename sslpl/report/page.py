"""Builds the page: one HTML file without references to other files."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from sslpl.report.caveats import caveats
from sslpl.report.charts import chart_data
from sslpl.report.comparison import Comparisons, DatasetComparison
from sslpl.report.over_datasets_tables import overall_sections
from sslpl.report.render import render_html
from sslpl.report.sections import dataset_sections
from sslpl.report.styles import Style
from sslpl.report.table import Section


def render_page(comparisons: Comparisons, styles: Mapping[str, Style], warnings: Sequence[str]) -> str:
    """Renders the page; `warnings` are lines about the whole comparison, such as folders that cannot be read."""
    data = json.dumps([chart_data(comparison, styles) for comparison in comparisons], allow_nan=False)
    parts = {
        "title": f"Comparison of {sum(len(comparison.runs) for comparison in comparisons)} runs",
        "style": read_asset("page.css"),
        "script": read_asset("page.js"),
        "content": page_content(comparisons, styles, warnings),
        "data": data.replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], read_asset("page.html"))


def read_asset(name: str) -> str:
    """Reads a text file of this package."""
    return files("sslpl.report").joinpath(name).read_text(encoding="utf-8")


def page_content(comparisons: Comparisons, styles: Mapping[str, Style], warnings: Sequence[str]) -> str:
    """Renders the body of the page."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    colors = {name: style.color for name, style in styles.items()}
    links = (f'<a href="#dataset-{k}">{escape(comparison.dataset)}</a>' for k, comparison in enumerate(comparisons))
    return "\n".join(
        [
            f"<h1>{len(runs)} runs, {sum(run.finished for run in runs)} of them finished</h1>",
            f"<nav>{''.join(links)}</nav>" if len(comparisons) > 1 else "",
            warning_list(warnings),
            *(render_section(section, colors) for section in overall_sections(comparisons)),
            *(dataset_article(comparison, k, colors) for k, comparison in enumerate(comparisons)),
        ]
    )


def dataset_article(comparison: DatasetComparison, k: int, colors: Mapping[str, str]) -> str:
    """Renders the part of the page about the k-th dataset."""
    return "\n".join(
        [
            f'<article id="dataset-{k}"><h2>{escape(comparison.dataset)}</h2>',
            warning_list(caveats(comparison)),
            "<p>Mean over seeds, band: its 95% interval. Choose methods here; point at a chart to read its values.</p>",
            '<div class="legend"></div><div class="charts"></div>',
            *(render_section(section, colors) for section in dataset_sections(comparison)),
            "</article>",
        ]
    )


def render_section(section: Section, colors: Mapping[str, str]) -> str:
    """Renders the tables of a section below its heading."""
    tables = "".join(render_html(table, colors) for table in section.tables)
    return f"<section><h3>{section.heading}</h3>{tables}</section>"


def warning_list(warnings: Sequence[str]) -> str:
    """Renders warnings as a list; empty if there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    return f"<aside><b>Before you compare</b><ul>{items}</ul></aside>" if warnings else ""
