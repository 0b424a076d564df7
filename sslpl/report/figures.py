"""Draws the figures of a dataset: its learning curves, and its crossed options."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sslpl.recording.plots import GRAY, GRID, INK, label_ticks
from sslpl.report.charts import SHARE, band
from sslpl.report.comparison import Arm, DatasetComparison, final_accuracy, mean_curve
from sslpl.report.factorial import METRICS, Factorial
from sslpl.report.styles import COLORS, Style

OFFSET = 0.07  # between lines of crossed options, as a share of the distance between two options


def style_axes(ax: Axes, ticks: int, labelsize: float) -> None:
    """Sets up axes with percent on the vertical axis and a grid."""
    ax.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=labelsize, labelcolor=GRAY)
    ax.spines[:].set_visible(False)


def draw_arm(ax: Axes, arm: Arm, style: Style) -> None:
    """Draws the mean accuracy of an arm with its 95% interval."""
    curve = mean_curve(arm)
    x = [labeled for labeled, _ in curve]
    drawn: dict[str, Any] = {"color": style.color, "linestyle": (0, style.dash) if style.dash else "solid"}
    ax.plot(x, [e.mean for _, e in curve], label=arm.name, marker="o", markersize=3.5, linewidth=2, zorder=3, **drawn)
    if all(math.isfinite(e.low) for _, e in curve):
        low, high = zip(*(band(e, SHARE) for _, e in curve), strict=True)
        ax.fill_between(x, low, high, color=style.color, alpha=0.13, lw=0)


def draw_comparison(comparison: DatasetComparison, styles: Mapping[str, Style]) -> Figure:
    """Draws the learning curves of a dataset: mean and 95% interval over seeds, ceilings as horizontal lines."""
    figure = Figure((8, 4.2), dpi=200, facecolor="white", layout="constrained")
    ax = figure.add_subplot()
    arms = [arm for arm in comparison.arms if styles[arm.name].shown]
    for arm in arms:
        draw_arm(ax, arm, styles[arm.name])
    for arm in comparison.ceilings:
        drawn: dict[str, Any] = {"color": GRAY, "linewidth": 1.4, "linestyle": (0, (4, 3))}
        ax.axhline(final_accuracy(arm).mean, label=f"{arm.name} (all labels)", **drawn)
    if comparison.arms:
        label_ticks(ax, sorted({labeled for arm in arms for labeled in arm.labeled_counts}))
        ax.set_ylim(*accuracy_range(comparison, arms))
    style_axes(ax, ticks=7, labelsize=10)
    ax.set_xlabel("Labeled images", fontsize=11, color=INK)
    ax.set_ylabel("Test accuracy", fontsize=11, color=INK)
    ax.set_title(comparison.dataset, fontsize=12, fontweight="bold", color=INK, loc="left", parse_math=False)
    legend = figure.legend(loc="outside right upper", fontsize=8.5, frameon=False, handlelength=3.2, labelspacing=0.7)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def accuracy_range(comparison: DatasetComparison, arms: Sequence[Arm]) -> tuple[float, float]:
    """Returns a range of accuracies that holds the ceilings and all means with their standard deviation.

    Wide intervals of few seeds are cut off.
    """
    points = [e for arm in arms for _, e in mean_curve(arm)] + [final_accuracy(arm) for arm in comparison.ceilings]
    low, high = max(0.0, min(e.mean - e.std for e in points)), min(1.0, max(e.mean + e.std for e in points))
    margin = 0.05 * max(high - low, 0.02)
    return max(0.0, low - margin), min(1.003, high + margin)


def draw_factorial(factorial: Factorial, title: str) -> Figure:
    """Draws a row of panels per metric and a panel per pair of groups; lines that are not parallel interact."""
    pairs = list(combinations(range(len(factorial.groups)), 2))
    figure = Figure((3.5 * len(pairs), 3.1 * len(METRICS)), dpi=200, facecolor="white", layout="constrained")
    panels = figure.subplots(len(METRICS), len(pairs), squeeze=False, sharey="row")
    for metric, row in enumerate(panels):
        for ax, pair in zip(row, pairs, strict=True):
            draw_pair(ax, factorial, pair, metric)
            if metric == 0:
                place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 3, "alignment": "left"}
                ax.legend(title=factorial.groups[pair[1]], fontsize=7.5, title_fontsize=8, frameon=False, **place)
        row[0].set_ylabel(METRICS[metric], fontsize=10, color=INK)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    return figure


def draw_pair(ax: Axes, factorial: Factorial, pair: tuple[int, int], metric: int) -> None:
    """Draws a line of means over seeds and other groups per option of the second group, and a dot per seed."""
    first, second = pair
    others = tuple(axis + 1 for axis in range(len(factorial.groups)) if axis not in pair)
    values = factorial.values[metric].mean(axis=others)  # [seeds, options of the first, of the second]
    middle = (len(factorial.options[second]) - 1) / 2
    for k, option in enumerate(factorial.options[second]):
        x = [place + OFFSET * (k - middle) for place in range(len(factorial.options[first]))]
        ax.plot(x, values[:, :, k].mean(axis=0), color=COLORS[k % len(COLORS)], marker="o", label=option, zorder=3)
        for seed in values[:, :, k]:
            ax.plot(x, seed, ".", color=COLORS[k % len(COLORS)], alpha=0.45, markersize=4, zorder=2)
    ax.set_xticks(range(len(factorial.options[first])), [name.replace("_", "_\n") for name in factorial.options[first]])
    ax.set_xlabel(factorial.groups[first], fontsize=10, color=INK)
    style_axes(ax, ticks=6, labelsize=8)
    ax.margins(x=0.15)


def png_bytes(figure: Figure) -> bytes:
    """Renders a figure as a PNG image."""
    image = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    return image.getvalue()
