"""The look of each line: one color and dash wherever it is drawn."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from sslpl.report.comparison import BASELINE, DatasetComparison

# Of Okabe and Ito, without yellow, which is lost on white: told apart with any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAY = "#767676"
USUAL = {BASELINE: GRAY, "full": GRAY, "sslpm": "#D55E00", "scal": "#0072B2", "learning_loss": "#009E73"}
SOLID: tuple[int, ...] = ()
DASHES: tuple[tuple[int, ...], ...] = ((6, 3), (2, 2), (7, 2, 2, 2), (12, 4), (12, 3, 2, 3))
SHOWN = 6  # curves that are drawn to begin with, beside the usual ones


class Style(NamedTuple):
    """How a line is drawn."""

    color: str
    dash: tuple[int, ...]  # lengths of stroke and gap
    shown: bool  # to begin with


def arm_styles(boards: Sequence[DatasetComparison]) -> dict[str, Style]:
    """The look of each line by its name: the same on every board, and for the usual methods in every report."""
    ceilings = {line.name for board in boards for line in board.ceilings}
    lines = [line for board in boards for line in [*board.finished, *board.waiting]]
    usual = {line.name for line in lines if line.label in USUAL}
    shown = {line.name for board in boards for line in board.lines[:SHOWN]} | ceilings | usual
    names = sorted({line.name for line in lines})
    taken = {USUAL[name] for name in names if name in USUAL}
    free = [(SOLID, color) for color in COLORS if color not in taken] + list(product(DASHES, COLORS))
    others = [name for name in names if name not in USUAL]
    found = {name: Style(USUAL[name], SOLID, name in shown) for name in names if name in USUAL}
    for k, name in enumerate(others):
        dash, color = free[k % len(free)]
        found[name] = Style(color, dash, name in shown)
    return found | {name: look._replace(dash=DASHES[0]) for name, look in found.items() if name in ceilings}
