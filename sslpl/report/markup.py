"""Pieces of HTML: tables, numbers, names."""

import math
import re
from collections.abc import Sequence
from html import escape

from sslpl.report.statistics import Array, Estimate

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """An HTML table in a box that scrolls by itself; the cells are HTML already, the first of a row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(map(cell, row[1:]))}</tr>' for row in rows)
    above = f"<p>{caption}</p>" if caption else ""
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'{above}<div class="scroll" tabindex="0"><table class="{kind}">{inside}</table></div>'


def cell(content: str) -> str:
    """A cell of a table, if it is not one yet."""
    return content if content.startswith("<td") else f"<td>{content}</td>"


def section(title: str, content: str) -> str:
    """A part of the page under a heading; nothing without content."""
    return f"<section><h3>{title}</h3>{content}</section>" if content else ""


def name(text: str) -> str:
    """A name that may be broken after its signs."""
    return re.sub(r"([_+=,.])", r"\1<wbr>", escape(text))


def percent(estimate: Estimate) -> str:
    """A mean in percent over its interval."""
    return number(100 * estimate.mean, 2) + interval(100 * estimate.low, 100 * estimate.high, 2)


def number(value: float, digits: int) -> str:
    """A number; a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def interval(low: float, high: float, digits: int) -> str:
    """The ends of an interval as a smaller second line; nothing for NaN."""
    return "" if math.isnan(low) else f"<small>{number(low, digits)} to {number(high, digits)}</small>"


def heat(value: float, text: str, highest: float = 1.0) -> str:
    """A cell as dark as its value is high."""
    share = 0 if math.isnan(value) or not highest else max(0.0, min(1.0, value / highest))
    return f'<td style="--heat:{100 * share:.0f}%">{text}</td>'


def matrix(names: Sequence[str], values: Array, caption: str, highest: float = 1.0) -> str:
    """A square table."""
    rows = [
        [name(one), *(heat(value, number(value, 2), highest) for value in row)]
        for one, row in zip(names, values, strict=True)
    ]
    return table(["", *map(name, names)], rows, caption, "matrix")
