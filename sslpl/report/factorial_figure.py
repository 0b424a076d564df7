"""Crossed options as an image: the mean for each pair of options of two groups, and where each seed lies."""

from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sslpl.recording.plots import GRAY, GRID, INK
from sslpl.report.factorial import METRICS, Factorial
from sslpl.report.styles import COLORS

ASIDE = 0.07  # of the distance of two options: how far the lines stand apart


def draw_factorial(found: Factorial, title: str) -> Figure:
    """A row of panels for each metric, a panel for each pair of groups: lines that are not parallel interact."""
    pairs = list(combinations(range(len(found.groups)), 2))
    figure = Figure((3.5 * len(pairs), 3.1 * len(METRICS)), dpi=200, facecolor="white", layout="constrained")
    panels = figure.subplots(len(METRICS), len(pairs), squeeze=False, sharey="row")
    for metric, row in enumerate(panels):
        for ax, pair in zip(row, pairs, strict=True):
            draw_pair(ax, found, pair, metric)
            if metric == 0:
                place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 3, "alignment": "left"}
                ax.legend(title=found.groups[pair[1]], fontsize=7.5, title_fontsize=8, frameon=False, **place)
        row[0].set_ylabel(METRICS[metric], fontsize=10, color=INK)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    return figure


def draw_pair(ax: Axes, found: Factorial, pair: tuple[int, int], metric: int) -> None:
    """Means over the other groups and the seeds, joined for each option of the second group; a dot for each seed."""
    first, second = pair
    others = tuple(axis + 1 for axis in range(len(found.groups)) if axis not in pair)
    values = found.values[metric].mean(axis=others)  # [seeds, options of the first, of the second]
    middle = (len(found.options[second]) - 1) / 2
    for k, option in enumerate(found.options[second]):
        x = [place + ASIDE * (k - middle) for place in range(len(found.options[first]))]
        ax.plot(x, values[:, :, k].mean(axis=0), color=COLORS[k % len(COLORS)], marker="o", label=option, zorder=3)
        for seed in values[:, :, k]:
            ax.plot(x, seed, ".", color=COLORS[k % len(COLORS)], alpha=0.45, markersize=4, zorder=2)
    ax.set_xticks(range(len(found.options[first])), [name.replace("_", "_\n") for name in found.options[first]])
    ax.set_xlabel(found.groups[first], fontsize=10, color=INK)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.15)
    ax.tick_params(length=0, labelsize=8, labelcolor=GRAY)
    ax.spines[:].set_visible(False)
