"""Reads annotators' labels from a table and validates them against the request, without correcting anything."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from sslpl.csv_text import unescape_formula
from sslpl.types import InvalidLabels

MAX_PROBLEMS = 10  # maximum number of problems that an error lists
MAX_LISTED_CLASSES = 20  # maximum number of classes that an error line lists


class LabelRow(NamedTuple):
    """The label of one image in a file."""

    location: str  # such as `row 5`, for error messages
    path: str
    label: str  # class name; empty: unlabeled


def read_table(path: Path) -> list[LabelRow]:
    """Reads a table with the columns path and label as any spreadsheet program saves it; InvalidLabels otherwise.

    Cells are separated by commas, semicolons or tabs. The text is UTF-8, UTF-16 with a byte order mark, or
    Windows-1252. Further columns and any order of them are allowed.
    """
    try:
        text = decode_text(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabels(f"{path}: cannot be read ({error}): save it as CSV") from error
    tables = [parse_lines(text, delimiter) for delimiter in ",;\t"]
    table = next((table for table in tables if table and {"path", "label"} <= set(column_names(table))), None)
    if table is None or any(column_names(table).count(name) > 1 for name in ("path", "label")):
        widest = max((column_names(table) for table in tables if table), key=len, default=[])
        present = ", ".join(widest)[:120] if "".join(widest).isprintable() and widest else "none"
        raise InvalidLabels(f"{path}, row 1: must name the columns path and label, once each; has {present}")
    columns = [column_names(table).index(name) for name in ("path", "label")]
    rows = []
    for number, cells in table[1:]:
        cells = [*cells, *[""] * len(column_names(table))]
        rows.append(LabelRow(f"row {number}", *(unescape_formula(cells[column].strip()) for column in columns)))
    return [row for row in rows if row.path or row.label]


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, UTF-16 or Windows-1252 text without its byte order mark; validation catches misread letters."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def parse_lines(text: str, delimiter: str) -> list[tuple[int, list[str]]] | None:
    """Returns the nonempty lines of a table, numbered from 1; None if it cannot be parsed with the delimiter."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error:
        return None
    return lines[1:] if text.lstrip().lower().startswith("sep=") else lines  # Excel may write the separator first


def column_names(table: Sequence[tuple[int, list[str]]]) -> list[str]:
    """Returns the column names of a table in lower case."""
    return [cell.strip().lower() for cell in table[0][1]]


def validate_labels(
    rows: Sequence[LabelRow],
    file: Path,
    requested: Sequence[str],
    class_names: Sequence[str],
    partial: bool,
    new_classes: bool,
) -> tuple[list[int], tuple[str, ...]]:
    """Returns the label of each requested path (-1 if unlabeled) and all class names; InvalidLabels if any is wrong."""
    problems: list[str] = []
    names, first = [*class_names], dict[str, LabelRow]()
    requested_set = set(requested)

    def hint(word: str, known: Sequence[str]) -> str:
        # Searched for the problems that are shown only: for every line of a long file it would take minutes.
        return suggestion(word, known) if len(problems) < MAX_PROBLEMS else ""

    for row in rows:
        path = row.path if row.path in requested_set else row.path.replace("\\", "/")
        if path not in requested_set:
            problems.append(f"{file}, {row.location}: path {row.path!r} was not asked for{hint(row.path, requested)}")
        elif path in first:
            which = "the same" if first[path].label == row.label else "another"
            earlier = f"{which} label in {first[path].location}"
            problems.append(f"{file}, {row.location}: path {path!r} has {earlier}: keep one row")
        else:
            first[path] = row
            if row.label and row.label not in names and (not new_classes or differs_by_case(row.label, names)):
                advice = f"{hint(row.label, names)}; {list_classes(names)}"
                problems.append(f"{file}, {row.location}: label {row.label!r} is no class{advice}")
            elif row.label and row.label not in names:
                names.append(row.label)
    problems += missing_labels(first, file, requested, partial)
    if problems:
        omitted = len(problems) - MAX_PROBLEMS
        more = [f"{file}: {omitted:,} more like these"] if omitted > 0 else []
        raise InvalidLabels(*problems[:MAX_PROBLEMS], *more)
    label_of = {"": -1} | {name: label for label, name in enumerate(names)}
    return [label_of[first[path].label if path in first else ""] for path in requested], tuple(names)


def missing_labels(first: Mapping[str, LabelRow], file: Path, requested: Sequence[str], partial: bool) -> Iterator[str]:
    """Yields an error for each missing label; if a partial answer is allowed, only if there is no label at all."""
    missing = [path for path in requested if path not in first or not first[path].label]
    if partial and len(missing) == len(requested):
        yield f"{file}: must hold at least one label, has none"
    for path in [] if partial else missing:
        location = f", {first[path].location}" if path in first else ""
        yield f"{file}{location}: path {path!r} has no label (oracle.partial=true accepts a part)"


def differs_by_case(word: str, names: Sequence[str]) -> bool:
    """True if a word differs from a known name only by case: more likely a typo than a new class."""
    return word.casefold() in (name.casefold() for name in names)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns the known word closest to a wrong one as the end of an error line; empty if none is close."""
    by_lower = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), by_lower, n=1, cutoff=0.6)
    return f": did you mean {by_lower[close[0]]!r}?" if close else ""


def list_classes(names: Sequence[str]) -> str:
    """Lists the known classes for an error line, at most MAX_LISTED_CLASSES of them."""
    rest = f" and {len(names) - MAX_LISTED_CLASSES} more" if len(names) > MAX_LISTED_CLASSES else ""
    return f"known: {', '.join(names[:MAX_LISTED_CLASSES])}{rest}"
