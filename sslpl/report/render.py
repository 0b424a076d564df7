"""Renders a table as HTML, Markdown, LaTeX (booktabs) or for the terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

import rich.table

from sslpl.report.table import DASH, MINUS, Bar, Cell, Name, Table, Text, Value

LATEX_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "--"}
LATEX_SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def render_html(table: Table, colors: Mapping[str, str]) -> str:
    """Renders a table as HTML in a box that scrolls; `colors` are those of the arms by name."""
    head = "".join(f'<th scope="col"{html_attribute(cell)}>{html_content(cell, colors)}</th>' for cell in table.header)
    rows = (
        f'<tr><th scope="row">{html_content(first, colors)}</th>'
        + "".join(f"<td{html_attribute(cell)}>{html_content(cell, colors)}</td>" for cell in others)
        + "</tr>"
        for first, *others in table.rows
    )
    title = f"<p><b>{escape(table.title)}</b></p>" if table.title else ""
    caption = f"<p>{escape(table.caption)}</p>" if table.caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'{title}{caption}<div class="scroll" tabindex="0"><table class="{table.style}">{body}</table></div>'


def html_content(cell: Cell, colors: Mapping[str, str]) -> str:
    """Renders the content of a cell as HTML."""
    match cell:
        case Name(text, colored):
            name = re.sub(r"([_+=,.])", r"\1<wbr>", escape(text))  # may be wrapped after these signs
            dot = f'<span class="dot" style="--c:{colors.get(text, "")}"></span>'
            return f'<span class="named">{dot}<span>{name}</span></span>' if colored else name
        case Text() | Value():
            text = f"<b>{escape(cell.text)}</b>" if isinstance(cell, Value) and cell.strong else escape(cell.text)
            return text + (f"<small>{escape(cell.note)}</small>" if cell.note else "")
        case Bar(parts):
            drawn = (f"<i class='{name}' style='width:{100 * share:.2f}%'></i>" for name, share in parts.items())
            return f"<span class='bar'>{''.join(drawn)}</span>"
        case _:
            return escape(cell)


def html_attribute(cell: Cell) -> str:
    """Returns the attribute of a cell's tag: the heat of a value or the class of a text."""
    if isinstance(cell, Value) and cell.heat is not None:
        return f' style="--heat:{100 * cell.heat:.0f}%"'
    return f' class="{escape(cell.style)}"' if isinstance(cell, Text) and cell.style else ""


def plain_text(cell: Cell) -> str:
    """Renders a cell as one line of plain text: a value with its standard deviation or else with its interval."""
    if isinstance(cell, str):
        return cell
    note = cell.note if isinstance(cell, Text) or (isinstance(cell, Value) and math.isnan(cell.std)) else ""
    return f"{cell.text} ({note})" if note else cell.text


def render_markdown(table: Table) -> str:
    """Renders a table as Markdown below its title and caption."""
    lines = [list(map(plain_text, row)) for row in (table.header, *table.rows)]
    lines.insert(1, ["---"] * len(table.header))
    above = [f"**{table.title}**"] if table.title else []
    above += [table.caption] if table.caption else []
    return "\n\n".join([*above, "\n".join("| " + " | ".join(line) + " |" for line in lines)])


def render_latex(table: Table) -> str:
    """Renders a table as LaTeX (booktabs); rows with the same first cell form a group that names it once."""
    lines = [rf"\begin{{tabular}}{{ll{'r' * (len(table.header) - 2)}}}", r"\toprule"]
    lines.append(latex_row([text[:1].upper() + text[1:] for text in map(plain_text, table.header)]))
    for _, group in groupby(table.rows, key=lambda row: row[0]):
        first, *others = group
        lines += [r"\midrule", latex_row(first), *(latex_row(["", *row[1:]]) for row in others)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def latex_row(row: Sequence[Cell]) -> str:
    """Renders a row as LaTeX."""
    return " & ".join(map(latex_cell, row)) + r" \\"


def latex_cell(cell: Cell) -> str:
    """Renders a cell as LaTeX: numbers in math mode, text with its special characters escaped."""
    text = plain_text(cell)
    if not isinstance(cell, Value) or text == DASH:
        return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)
    number = rf"\mathbf{{{cell.number(cell.value)}}}" if cell.strong else cell.number(cell.value)
    spread = "" if math.isnan(cell.std) else rf" \pm {cell.number(cell.std)}"
    return f"${number}{spread}${text.removeprefix(cell.text)}".replace(MINUS, "-")


def render_terminal(table: Table) -> rich.table.Table:
    """Renders a table for the terminal."""
    columns = (rich.table.Column(plain_text(cell), no_wrap=True) for cell in table.header)
    rendered = rich.table.Table(*columns, box=None)
    for row in table.rows:
        rendered.add_row(*map(plain_text, row))
    return rendered
