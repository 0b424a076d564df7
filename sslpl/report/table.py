"""The table model: typed cells that each format of the report renders in its own way."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sslpl.report.statistics import Array, Estimate, Interval

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
MOST_NAMED_COLUMNS = 12  # of a matrix


class Text(NamedTuple):
    """Text with an optional note: smaller and below it in HTML, in parentheses elsewhere."""

    text: str
    note: str = ""
    style: str = ""  # CSS class of the HTML cell


class Name(NamedTuple):
    """The name of an arm, a dataset or an option; HTML may wrap it."""

    text: str
    colored: bool = False  # whether HTML shows the color of the arm with this name


class Value(NamedTuple):
    """A number with its interval and standard deviation; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    std: float = math.nan
    digits: int = 2
    strong: bool = False  # bold in HTML and LaTeX
    heat: float | None = None  # share of the darkest background in HTML, 0 to 1

    @property
    def text(self) -> str:
        """Returns the number, with its standard deviation if there is one."""
        return self.number(self.value) + ("" if math.isnan(self.std) else f" ± {self.number(self.std)}")

    @property
    def note(self) -> str:
        """Returns the ends of the interval; empty if there is none."""
        return "" if math.isnan(self.low) else f"{self.number(self.low)} to {self.number(self.high)}"

    def number(self, value: float) -> str:
        """Formats a number; NaN is a dash."""
        return DASH if math.isnan(value) else f"{value:.{self.digits}f}".replace("-", MINUS)


class Bar(NamedTuple):
    """A stacked bar, drawn in HTML only; the length of each part is a share of the longest bar."""

    parts: Mapping[str, float]
    text: str = ""


Cell = str | Text | Name | Value | Bar
Row = list[Cell]


class Table(NamedTuple):
    """A table with a title and a caption above it; the first cell of a row is the row's heading."""

    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    title: str = ""
    style: str = ""  # CSS class of the HTML table


class Section(NamedTuple):
    """Tables under one heading."""

    heading: str
    tables: Sequence[Table]


def percent_value(e: Estimate, *, spread: bool = False, strong: bool = False, heat: float | None = None) -> Value:
    """Returns a cell with an estimate in percent, with its standard deviation if `spread`."""
    return Value(100 * e.mean, 100 * e.low, 100 * e.high, 100 * e.std if spread else math.nan, 2, strong, heat)


def percent_interval(interval: Interval | None, digits: int = 2) -> Cell:
    """Returns a cell with an interval in percent, without its ends if it has no width; a dash for NaN."""
    if interval is None or math.isnan(interval.value):
        return DASH
    value, low, high = (100 * number for number in interval)
    return Value(value, low, high, digits=digits) if high > low else Value(value, digits=digits)


def heat(value: float, highest: float) -> float:
    """Returns a value as a share of the highest one, within 0 to 1; 0 for NaN."""
    return 0.0 if math.isnan(value) or not highest else max(0.0, min(1.0, value / highest))


def matrix_table(
    names: Sequence[str], values: Array, caption: str, highest: float = 1.0, *, digits: int = 2, title: str = ""
) -> Table:
    """Returns a square table of numbers with a heat map; without rows if no number is defined.

    The columns of a wide table are numbered, because their names would not fit; its rows show number and name.
    """
    wide = len(names) > MOST_NAMED_COLUMNS
    heads = [f"{k}. {name}" if wide else name for k, name in enumerate(names, 1)]
    named = zip(heads, values.tolist(), strict=True) if any(not math.isnan(value) for value in values.flat) else ()
    rows: list[Row] = [
        [Name(name), *(Value(v, digits=digits, heat=heat(v, highest)) for v in row)] for name, row in named
    ]
    columns = map(str, range(1, len(names) + 1)) if wide else map(Name, names)
    return Table(["", *columns], rows, caption, title, "matrix")


def drop_empty_columns(table: Table) -> Table:
    """Returns a table without the columns in which every row has a dash; without rows, the table as it is."""
    kept = [k for k in range(len(table.header)) if not table.rows or any(row[k] != DASH for row in table.rows)]
    rows = [[row[k] for k in kept] for row in table.rows]
    return table._replace(header=[table.header[k] for k in kept], rows=rows)
