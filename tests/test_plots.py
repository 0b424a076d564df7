"""The learning curve is a complete PNG for every possible history of a run."""

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sslpl.recording.plots import (
    accuracy_limits,
    correlation_limits,
    draw_learning_curve,
    learning_curve,
    metric_points,
    wrap_text,
)

SIX = [
    {"cycle": i, "labeled": 2500 * (i + 1), "test_accuracy": a, "loss_rank_correlation": c}
    for i, (a, c) in enumerate([(0.48, 0.31), (0.59, 0.36), (0.65, 0.41), (0.69, 0.46), (0.71, 0.51), (0.7342, None)])
]
PLAIN = [{**row, "loss_rank_correlation": None} for row in SIX]


def size(path: Path) -> tuple[int, int]:
    """Reads width and height from the header of a PNG and checks its end marker."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def texts(figure) -> set[str]:
    figure.canvas.draw()
    labels = [label.get_text() for ax in figure.axes for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]]
    return {
        *(text.get_text() for text in figure.texts),
        *(t.get_text() for ax in figure.axes for t in ax.texts),
        *labels,
    }


@pytest.mark.parametrize(
    "rows",
    [SIX, PLAIN, SIX[:1], PLAIN[:1], list(reversed(SIX)), SIX * 7, [], [{"cycle": 0, "labeled": 5}]],
    ids=["six", "no-correlation", "one", "one-plain", "reversed", "many", "empty", "no-accuracy"],
)
def test_every_case_leaves_one_whole_image(rows, tmp_path):
    learning_curve(rows, tmp_path / "learning_curve.png", "sslpm", "digits, seed 0")
    width, height = size(tmp_path / "learning_curve.png")
    assert width == 1152
    assert height > 600
    assert [file.name for file in tmp_path.iterdir()] == ["learning_curve.png"]


def test_the_second_panel_appears_only_with_a_correlation():
    assert len(draw_learning_curve(SIX, "sslpm", "").axes) == 2
    assert len(draw_learning_curve(PLAIN, "random", "").axes) == 1


def test_the_figure_names_title_last_value_and_labels_with_separators():
    shown = texts(draw_learning_curve(SIX, "sslpm+query=entropy+ssl.threshold=0.8", "cifar100, $seed$ 0"))
    assert {
        "sslpm+query=entropy+ssl.threshold=0.8",
        "cifar100, $seed$ 0",
        "73.42%",
        "0.51",
        "15,000",
    } <= shown
    assert any(text.endswith("0%") for text in shown)


def test_a_long_title_stays_inside_the_image():
    figure = draw_learning_curve(SIX, "sslpm+query=selective_clustering" * 6 + "x" * 200, "cifar100 resnet18 " * 12)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    heading, below = boxes
    assert heading.y0 > below.y1
    assert below.y0 > figure.axes[0].get_tightbbox().y1


@pytest.mark.parametrize("rows", [SIX, PLAIN[:1], SIX * 7])
def test_nothing_is_cut_off_at_the_edges(rows):
    figure = draw_learning_curve(rows, "sslpm", "digits")
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_a_failed_write_keeps_the_old_image_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    learning_curve(SIX[:1], path, "old")
    before = path.read_bytes()

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        learning_curve(SIX, path, "new")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_threads_draw_the_same_image_as_one(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: learning_curve(SIX, path, "sslpm"), paths))
    assert len({path.read_bytes() for path in paths}) == 1


def test_points_leave_out_what_is_missing_or_not_finite():
    rows = [
        {"labeled": 1, "test_nll": math.nan},
        {"labeled": 2, "test_nll": None},
        {"labeled": 3, "test_nll": 0.0},
    ]
    assert metric_points(rows, "test_nll") == [(3, 0.0)]


def test_limits_hold_every_value_and_zero():
    low, high = correlation_limits([0.3, 0.6])
    assert -0.1 < low < 0 < 0.75 < high < 0.85
    low, high = correlation_limits([-1.0, 1.0])
    assert -1.1 < low <= -1
    assert 1 <= high < 1.1
    low, high = accuracy_limits([0.9, 0.9001])
    assert high - low >= 0.04 - 1e-9
    low, high = accuracy_limits([0.0, 1.0])
    assert low == 0
    assert 1 <= high < 1.01


def test_wrapping_loses_nothing():
    text = "sslpm+query=entropy+ssl.threshold=0.8 on a/b, " + "x" * 50
    assert max(map(len, wrap_text(text, 12).split("\n"))) <= 12
    assert "".join(wrap_text(text, 12).split()) == "".join(text.split())
    assert wrap_text("", 10) == ""
