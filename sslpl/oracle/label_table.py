"""People's labels: read from a table, and checked against what was asked. Nothing is guessed, nothing is changed."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from sslpl.csv_text import unescape_formula
from sslpl.types import InvalidLabels

SHOWN = 10  # problems, of a file that has more
KNOWN = 20  # classes, in a line that lists them


class LabelRow(NamedTuple):
    """What a file says of one image."""

    place: str  # `row 5`
    path: str
    label: str  # empty: nothing


def read_table(path: Path) -> list[LabelRow]:
    """The rows of a table with the columns path and label, whatever program saved it; LabelsRefused if it is none.

    Commas, semicolons or tabs between the cells; UTF-8 with or without its mark, UTF-16 with it, or Windows' Latin
    letters; any further columns, any order of them.
    """
    try:
        text = decode_text(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabels(f"{path}: cannot be read ({error}): save it as CSV") from error
    tables = [parse_lines(text, delimiter) for delimiter in ",;\t"]
    table = next((table for table in tables if table and {"path", "label"} <= set(header(table))), None)
    if table is None or any(header(table).count(name) > 1 for name in ("path", "label")):
        widest = max((header(table) for table in tables if table), key=len, default=[])
        said = ", ".join(widest)[:120] if "".join(widest).isprintable() and widest else "none"
        raise InvalidLabels(f"{path}, row 1: must name the columns path and label, once each; has {said}")
    at_path, at_label = header(table).index("path"), header(table).index("label")
    rows = []
    for number, cells in table[1:]:
        cells = [*cells, *[""] * len(header(table))]
        path_cell, label_cell = (unescape_formula(cells[at].strip()) for at in (at_path, at_label))
        rows.append(LabelRow(f"row {number}", path_cell, label_cell))
    return [row for row in rows if row.path or row.label]


def decode_text(data: bytes) -> str:
    """The text of a file, without a mark of its encoding; what is misread is no known path or class."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def parse_lines(text: str, delimiter: str) -> list[tuple[int, list[str]]] | None:
    """The lines of a table that are not empty, with their numbers from 1; None if it cannot be read like this."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        found = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error:
        return None
    return found[1:] if text.lstrip().lower().startswith("sep=") else found  # as Excel begins a table


def header(table: Sequence[tuple[int, list[str]]]) -> list[str]:
    """The names of a table's columns."""
    return [cell.strip().lower() for cell in table[0][1]]


def validate_labels(
    rows: Sequence[LabelRow],
    file: Path,
    asked: Sequence[str],
    class_names: Sequence[str],
    partial: bool,
    new_classes: bool,
) -> tuple[list[int], tuple[str, ...]]:
    """A class for each path that was asked (-1: none), and the classes known then; LabelsRefused with every mistake."""
    problems: list[str] = []
    names, first = [*class_names], dict[str, LabelRow]()
    wanted = set(asked)

    def hint(word: str, known: Sequence[str]) -> str:
        return suggestion(word, known) if len(problems) < SHOWN else ""  # of a long file all at once would take minutes

    for row in rows:
        path = row.path if row.path in wanted else row.path.replace("\\", "/")
        if path not in wanted:
            problems.append(f"{file}, {row.place}: path {row.path!r} was not asked for{hint(row.path, asked)}")
        elif path in first:
            how = "the same" if first[path].label == row.label else "another"
            problems.append(f"{file}, {row.place}: path {path!r} has {how} label in {first[path].place}: keep one row")
        else:
            first[path] = row
            if row.label and row.label not in names and (not new_classes or differs_by_case(row.label, names)):
                guess = f"{hint(row.label, names)}; {list_classes(names)}"
                problems.append(f"{file}, {row.place}: label {row.label!r} is no class{guess}")
            elif row.label and row.label not in names:
                names.append(row.label)
    problems += missing_labels(first, file, asked, partial)
    if problems:
        more = len(problems) - SHOWN
        raise InvalidLabels(*problems[:SHOWN], *([f"{file}: {more:,} more like these"] if more > 0 else []))
    label_of = {"": -1} | {name: label for label, name in enumerate(names)}
    return [label_of[first[path].label if path in first else ""] for path in asked], tuple(names)


def missing_labels(first: Mapping[str, LabelRow], file: Path, asked: Sequence[str], partial: bool) -> Iterator[str]:
    """What is not there: each label that is asked for, or if a part is enough, any."""
    missing = [path for path in asked if path not in first or not first[path].label]
    if partial and len(missing) == len(asked):
        yield f"{file}: must hold at least one label, has none"
    for path in [] if partial else missing:
        place = f", {first[path].place}" if path in first else ""
        yield f"{file}{place}: path {path!r} has no label (oracle.partial=true accepts a part)"


def differs_by_case(word: str, names: Sequence[str]) -> bool:
    """Whether a word is a known one but for small and capital letters: more likely a slip than a new class."""
    return word.casefold() in (name.casefold() for name in names)


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that a wrong one was probably meant to be, as the end of a sentence."""
    by_small = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), by_small, n=1, cutoff=0.6)
    return f": did you mean {by_small[close[0]]!r}?" if close else ""


def list_classes(names: Sequence[str]) -> str:
    """The known classes, as many as a line holds."""
    rest = f" and {len(names) - KNOWN} more" if len(names) > KNOWN else ""
    return f"known: {', '.join(names[:KNOWN])}{rest}"
