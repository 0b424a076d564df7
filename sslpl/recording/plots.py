"""The learning curve of one run as an image."""

import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from sslpl.files import write_whole

Row = Mapping[str, float | int | None]
Points = list[tuple[float, float]]

BLUE, VERMILLION = "#0072B2", "#D55E00"  # Okabe and Ito: distinguishable with any color vision
INK, GRAY, GRID = "#1f1f1f", "#5f5f5f", "#e4e4e4"
WIDTH, DPI = 7.2, 160  # inches, dots per inch
LEFT, RIGHT, BOTTOM, GAP = 0.75, 1.0, 0.7, 0.55  # inches; the right margin holds the label of the last point
ACCURACY_HEIGHT, CORRELATION_HEIGHT = 3.1, 1.15  # of the two panels, in inches
TITLE_CHARACTERS = 52


def metric_points(rows: Sequence[Row], key: str) -> Points:
    """Returns the pairs (labeled, value) of the rows in which both are present and the value is finite."""
    pairs = [(row.get("labeled"), row.get(key)) for row in rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]


def wrap_text(text: str, width: int) -> str:
    """Wraps a text after spaces, slashes, commas and plus signs, or inside a word that is longer than a line."""
    lines = [""]
    for word in re.findall(rf"[^ /,+]{{0,{width - 1}}}[ /,+]|[^ /,+]{{1,{width}}}", text):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def accuracy_limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns axis limits for accuracies, never so narrow that noise looks like progress."""
    low, high = min(values), max(values)
    margin = max(0.12 * (high - low), 0.02 - (high - low) / 2)
    return max(0.0, low - margin), min(1.005, high + margin)


def correlation_limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns axis limits for correlations: quarters between -1 and 1 that contain zero and every value."""
    low, high = math.floor(4 * min(values)) / 4, math.ceil(4 * max(values)) / 4
    return max(-1.0, min(low, 0.0)) - 0.06, min(1.0, max(high, 0.25)) + 0.06


def label_ticks(ax: Axes, labeled: Sequence[float]) -> None:
    """Places the horizontal ticks at the points themselves if there is room for their numbers."""
    low, high = min(labeled), max(labeled)
    margin = 0.04 * (high - low) or 0.5 * high or 1.0
    ax.set_xlim(low - margin, high + margin)
    gaps = [after - before for before, after in pairwise(labeled)]
    fits = len(labeled) <= 9 and all(gap > 0.09 * (high - low) for gap in gaps)
    ax.xaxis.set_major_locator(FixedLocator(labeled) if fits else MaxNLocator(7, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def draw_line(ax: Axes, points: Points, color: str, caption: str, last: str) -> None:
    """Draws a series of points, with its caption above the axes and the text `last` beside its last point."""
    x, y = zip(*points, strict=True)
    size = 6.5 if len(points) <= 15 else 3.5
    ax.plot(x, y, color=color, linewidth=2.2, marker="o", markersize=size, clip_on=False, zorder=3)
    ax.annotate(
        last,
        (x[-1], y[-1]),
        (9, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=13,
        fontweight="bold",
        annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
    ax.text(0, 1.03, caption, transform=ax.transAxes, fontsize=11.5, color=color, va="bottom")
    ax.grid(color=GRID, linewidth=0.9)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=11, labelcolor=GRAY, pad=6)
    ax.spines[:].set_visible(False)


def panel(figure: Figure, top: float, height: float) -> Axes:
    """Adds axes to a figure, `top` inches below its upper edge and `height` inches high."""
    width, total = figure.get_size_inches()
    bottom = (total - top - height) / total
    return figure.add_axes((LEFT / width, bottom, (width - LEFT - RIGHT) / width, height / total))


def draw_learning_curve(rows: Sequence[Row], title: str, subtitle: str) -> Figure:
    """Draws a learning curve and, if it is known, the rank correlation of the predicted losses below it."""
    accuracy, correlation = metric_points(rows, "test_accuracy"), metric_points(rows, "loss_rank_correlation")
    title, subtitle = wrap_text(title, TITLE_CHARACTERS), wrap_text(subtitle, 84)
    subtitle_top = 0.2 + 0.28 * len(title.split("\n"))  # inches below the upper edge
    top = subtitle_top + (0.22 * len(subtitle.split("\n")) if subtitle else 0.0) + 0.5
    height = top + ACCURACY_HEIGHT + (GAP + CORRELATION_HEIGHT if correlation else 0.0) + BOTTOM
    figure = Figure((WIDTH, height), dpi=DPI, facecolor="white")
    style: dict[str, Any] = {"va": "top", "ha": "left", "parse_math": False, "linespacing": 1.25}
    figure.text(0.2 / WIDTH, 1 - 0.18 / height, title, fontsize=14, fontweight="bold", color=INK, **style)
    figure.text(0.2 / WIDTH, 1 - subtitle_top / height, subtitle, fontsize=11, color=GRAY, **style)
    ax = panel(figure, top, ACCURACY_HEIGHT)
    if not accuracy:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no finished cycle yet", ha="center", fontsize=14, color=GRAY)
        return figure
    draw_line(ax, accuracy, BLUE, "Test accuracy", f"{accuracy[-1][1]:.2%}")
    ax.set_ylim(accuracy_limits([y for _, y in accuracy]))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    label_ticks(ax, [x for x, _ in accuracy])
    if correlation:
        ax.tick_params(labelbottom=False)
        ax = panel(figure, top + ACCURACY_HEIGHT + GAP, CORRELATION_HEIGHT)
        values = [y for _, y in correlation]
        last = f"{values[-1]:.2f}".replace("-", "\N{MINUS SIGN}")
        draw_line(ax, correlation, VERMILLION, "Rank correlation of predicted and true loss", last)
        ax.axhline(0, color=GRAY, linewidth=1.1, zorder=2)
        ax.set_ylim(correlation_limits(values))
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2.5, 5, 10]))
        label_ticks(ax, [x for x, _ in accuracy])
    ax.set_xlabel("Labeled images", fontsize=12, color=INK, labelpad=7)
    return figure


def learning_curve(rows: Sequence[Row], path: Path, title: str, subtitle: str = "") -> None:
    """Writes a PNG that plots the test accuracy against the number of labeled images."""
    figure, image = draw_learning_curve(rows, title, subtitle), BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png", dpi=DPI)
    write_whole(path, image.getvalue())
