"""The learning curves of a dataset as an image."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sslpl.recording.plots import GRAY, GRID, INK, label_ticks
from sslpl.report.charts import SHARE, band
from sslpl.report.comparison import Arm, DatasetComparison, curve, final
from sslpl.report.styles import Style


def draw_curve(ax: Axes, line: Arm, look: Style) -> None:
    """Draws the mean of a line with its 95% interval."""
    points = curve(line)
    x = [labeled for labeled, _ in points]
    dashes = (0, look.dash) if look.dash else "solid"
    style: dict[str, Any] = {"color": look.color, "linestyle": dashes, "linewidth": 2, "zorder": 3}
    ax.plot(x, [e.mean for _, e in points], label=line.name, marker="o", markersize=3.5, **style)
    if all(math.isfinite(e.low) for _, e in points):
        low, high = zip(*(band(e, SHARE) for _, e in points), strict=True)
        ax.fill_between(x, low, high, color=look.color, alpha=0.13, lw=0)


def draw_board(board: DatasetComparison, looks: dict[str, Style]) -> Figure:
    """The learning curves of a dataset: mean and 95% interval over seeds, ceilings as horizontal lines."""
    figure = Figure((8, 4.2), dpi=200, facecolor="white", layout="constrained")
    ax = figure.add_subplot()
    lines = [line for line in board.lines if looks[line.name].shown]
    for line in lines:
        draw_curve(ax, line, looks[line.name])
    for line in board.ceilings:
        ax.axhline(
            final(line).mean, color=GRAY, linewidth=1.4, linestyle=(0, (4, 3)), label=f"{line.name} (all labels)"
        )
    if board.lines:
        label_ticks(ax, sorted({labeled for line in lines for labeled in line.grid}))
        ax.set_ylim(*limits(board, lines))
    ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    ax.set_xlabel("Labeled images", fontsize=11, color=INK)
    ax.set_ylabel("Test accuracy", fontsize=11, color=INK)
    ax.set_title(board.dataset, fontsize=12, fontweight="bold", color=INK, loc="left", parse_math=False)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, labelcolor=GRAY)
    ax.spines[:].set_visible(False)
    legend = figure.legend(loc="outside right upper", fontsize=8.5, frameon=False, handlelength=3.2, labelspacing=0.7)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def limits(board: DatasetComparison, lines: Sequence[Arm]) -> tuple[float, float]:
    """A range of accuracies that holds ceilings and means with a standard deviation; wide intervals are cut."""
    points = [e for line in lines for _, e in curve(line)] + [final(line) for line in board.ceilings]
    low, high = max(0.0, min(e.mean - e.std for e in points)), min(1.0, max(e.mean + e.std for e in points))
    margin = 0.05 * max(high - low, 0.02)
    return max(0.0, low - margin), min(1.003, high + margin)


def png(figure: Figure) -> bytes:
    """A figure as a PNG image."""
    image = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    return image.getvalue()
