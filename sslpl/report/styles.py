"""Assign each arm one color and dash pattern for all figures."""

from itertools import product
from typing import NamedTuple

from sslpl.report.comparison import Comparisons

# Okabe and Ito's palette without yellow, which is too light on white: distinct with any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAY = "#767676"
FIXED_COLORS = {"random": GRAY, "full": GRAY, "sslpm": "#D55E00", "scal": "#0072B2", "learning_loss": "#009E73"}
SOLID: tuple[int, ...] = ()
DASHES: tuple[tuple[int, ...], ...] = ((6, 3), (2, 2), (7, 2, 2, 2), (12, 4), (12, 3, 2, 3))
BEST = 6  # arms of a dataset whose curves are shown at first, besides those with a fixed color


class Style(NamedTuple):
    """How the curve of an arm is drawn."""

    color: str
    dash: tuple[int, ...]  # lengths of stroke and gap; empty for a solid line
    shown: bool  # at first; the page lets readers choose


def arm_styles(comparisons: Comparisons) -> dict[str, Style]:
    """Returns the style of each arm by its name: the same for all datasets, and fixed colors for common methods."""
    ceilings = {arm.name for comparison in comparisons for arm in comparison.ceilings}
    arms = [arm for comparison in comparisons for arm in comparison.every_arm]
    common = {arm.name for arm in arms if arm.method_name in FIXED_COLORS}
    shown = {arm.name for comparison in comparisons for arm in comparison.arms[:BEST]} | ceilings | common
    names = sorted({arm.name for arm in arms})
    fixed = {name: (SOLID, FIXED_COLORS[name]) for name in names if name in FIXED_COLORS}
    taken = {color for _, color in fixed.values()}
    free = [(SOLID, color) for color in COLORS if color not in taken] + list(product(DASHES, COLORS))
    others = [name for name in names if name not in fixed]
    drawn = fixed | {name: free[k % len(free)] for k, name in enumerate(others)}
    return {
        name: Style(color, DASHES[0] if name in ceilings else dash, name in shown)
        for name, (dash, color) in drawn.items()
    }
