"""CSV output whose text cells no spreadsheet runs as formulas, and the inverse of that escape."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # text that a spreadsheet would run, escaped or not
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Formats a header and rows as CSV; None and NaN become empty cells, formulas are escaped."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (header, *rows))
    return buffer.getvalue()


def csv_cell(value: Any) -> Any:
    """Returns the cell that is written for a value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return escape_formula(value) if isinstance(value, str) else value


def escape_formula(text: str) -> str:
    """Prefixes an apostrophe to text that a spreadsheet would run as a formula; numbers are left unchanged."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unescape_formula(text: str) -> str:
    """Undoes `escape_formula`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
