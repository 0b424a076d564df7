"""The output of a run, on a terminal and elsewhere."""

import io
import math
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from sslpl.recording import progress as module
from sslpl.recording.progress import PhaseCounters, Progress, duration, expected_seconds
from sslpl.recording.terminal import cycles_table, print_result

ROW = {
    "cycle": 0,
    "labeled": 2500,
    "test_accuracy": 0.71234,
    "test_macro_f1": 0.7,
    "test_nll": 1.25,
    "test_ece": 0.034,
    "loss_rank_correlation": 0.4123,
    "pseudo_label_rate": None,
    "pseudo_label_accuracy": math.nan,
    "train_seconds": 100.0,
    "finetune_seconds": 20.0,
    "evaluate_seconds": 2.0,
    "query_seconds": None,
    "train_images_per_second": 20000.0,
}
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={})


def pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, _environ={})


def play(progress: Progress, cycles: int = 2) -> None:
    """Reports a short run of every phase."""
    for cycle in range(cycles):
        progress.cycle(cycle, 2500 * (cycle + 1))
        for name, total in (("train", 40), ("finetune", 10), ("evaluate", 0), ("query", 1)):
            progress.phase(name, total, images=total * 128)
            for step in range(total):
                progress.epoch(step // 10, 4)
                progress.advance(1, 128, "loss 0.5")
        progress.cycle_done({**ROW, "cycle": cycle, "labeled": 2500 * (cycle + 1)})


def test_plain_lines_have_the_numbers_and_no_control_characters(clock):
    console = pipe()
    with Progress("plain", cycles=6, console=console) as progress:
        progress.message("resumed from [cycle 2] :smile:")
        progress.cycle(1, 5000)
        progress.phase("train", 400, images=51_200)
        progress.epoch(36, 200)
        clock.now += 10
        progress.advance(100, 12_800, "loss 1.250")
        progress.cycle_done({**ROW, "cycle": 1, "labeled": 5000})
    assert console.file.getvalue().splitlines() == [
        "resumed from [cycle 2] :smile:",
        "cycle 2/6  5,000 labeled  train  51,200 images",
        "cycle 2/6  5,000 labeled  train  epoch 37/200  loss 1.250  25%  1,280 images/s  30s left",
        "cycle 2/6  5,000 labeled  accuracy 71.23%  loss rank correlation 0.412  2m 02s",
    ]


def test_plain_lines_stay_plain_on_a_terminal_and_in_other_encodings(clock):
    console = terminal(20)
    with Progress("plain", cycles=2, console=console) as progress:
        play(progress)
    assert "\x1b" not in console.file.getvalue()
    assert "\r" not in console.file.getvalue()
    raw = io.BytesIO()
    with Progress("plain", cycles=1, console=Console(file=io.TextIOWrapper(raw, encoding="ascii"))) as progress:
        progress.message("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
        assert raw.getvalue() == b"caf?\n"  # already flushed


def test_plain_lines_are_throttled_and_grow_rarer(clock):
    console = pipe()
    progress = Progress("plain", cycles=1, console=console)
    progress.cycle(0, 10)
    progress.phase("train", 10**6)
    times = []
    for _ in range(20_000):  # 2,000 seconds in steps of 0.1
        clock.now += 0.1
        before = console.file.tell()
        progress.advance(1, 8)
        times += [clock.now] if console.file.tell() > before else []
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) > 4.9
    assert 59 < max(gaps) < 61
    assert 40 < len(times) < 80


def test_a_phase_is_named_before_its_first_step(clock):
    console = pipe()
    progress = Progress("plain", cycles=1, console=console)
    progress.cycle(0, 10)
    progress.phase("query", 1, images=45_000)
    assert console.file.getvalue() == "cycle 1/1  10 labeled  query  45,000 images\n"


def test_the_run_is_reckoned_only_from_whole_cycles(clock):
    console = pipe(200)
    progress = Progress("plain", cycles=4, console=console)
    for cycle in (1, 2, 3):  # the first was begun before a resume
        progress.cycle(cycle, 100 * (cycle + 1))
        progress.phase("train", 10, done=5 if cycle == 1 else 0)
        clock.now += 50.0 * (cycle + 1)
        progress.advance(5, 0)
    lines = [line for line in console.file.getvalue().splitlines() if "%" in line]
    assert ["run about" in line for line in lines] == [False, False, True]
    assert lines[0].endswith("100%  0.0s left")
    assert lines[2].endswith("50%  3m 20s left  run about 3m 20s left")


def test_expected_seconds_follow_what_was_seen():
    assert expected_seconds([(100, 10.0)], 200) == 20
    assert expected_seconds([(100, 10.0), (200, 15.0)], 300) == pytest.approx(20)
    assert expected_seconds([(100, 10.0), (200, 1.0)], 1000) == 0


def test_speed_forgets_the_distant_past(clock):
    phase = PhaseCounters("train", 1000)
    clock.now += 100
    phase.done, phase.images = 1, 10
    phase.speeds(clock.now)
    for _ in range(60):
        clock.now += 1
        phase.done, phase.images = phase.done + 5, phase.images + 50
        speeds = phase.speeds(clock.now)
    assert speeds == pytest.approx((5, 50))


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
def test_live_shows_a_block_and_clears_it(width):
    console = terminal(width)
    with Progress("live", cycles=2, console=console) as progress:
        play(progress)
        progress.phase("train", 40)
        progress.advance(10, 128)
        progress._live.refresh()
    out = console.file.getvalue()
    assert out.startswith(HIDE)
    assert SHOW in out
    assert "\x1b[2K" in out[out.index(SHOW) :]  # the block is wiped
    if width >= 60:
        assert "25%" in out
        assert "accuracy 71.23%" in out


def test_live_lines_never_wrap(clock):
    for width in (10, 40, 60, 200):
        console = terminal(width)
        progress = Progress("live", cycles=100, console=console)
        progress.cycle(98, 1_250_000)
        progress.phase("finetune", 1000, images=50_000_000)
        clock.now += 3
        progress.advance(100, 128_000, "loss 0.123456")
        with console.capture() as capture:
            console.print(progress._block())
        assert len(capture.get().splitlines()) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_exception_tears_the_live_block_down(error):
    console = terminal()

    def run(progress: Progress) -> None:
        with progress:
            progress.cycle(0, 1)
            raise error

    progress = Progress("live", cycles=1, console=console)
    with pytest.raises(error):
        run(progress)
    assert SHOW in console.file.getvalue()
    assert not progress._live.is_started
    with Progress("live", cycles=1, console=console):  # the console is free again
        pass


def test_auto_is_live_on_a_terminal_alone(monkeypatch):
    class Tty(io.StringIO):
        def isatty(self):
            return True

    assert Progress(cycles=1, console=pipe())._mode == "plain"
    assert Progress(cycles=1, console=Console(file=Tty(), _environ={}))._mode == "live"
    assert Progress(cycles=1, console=Console(file=Tty(), _environ={"TERM": "dumb"}))._mode == "plain"
    assert Progress("live", cycles=1, console=pipe())._mode == "plain"


def test_none_prints_nothing(capsys):
    console = terminal()
    for progress in (Progress("none", cycles=2, console=console), Progress("none", cycles=2)):
        with progress:
            progress.message("hello")
            play(progress)
    assert console.file.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["plain", "live", "none"])
def test_advance_is_cheap(mode):
    with Progress(mode, cycles=1, console=terminal() if mode == "live" else pipe()) as progress:
        progress.cycle(0, 10)
        progress.phase("train", 10**6)
        begun = time.perf_counter()
        for _ in range(20_000):
            progress.advance(1, 128, "loss")
        each = (time.perf_counter() - begun) / 20_000
    assert each < 20e-6  # some 0.2 microseconds on an idle machine


def table_text(rows, width=200) -> str:
    console = pipe(width)
    console.print(cycles_table(rows, width))
    return console.file.getvalue()


def test_the_table_has_the_numbers_and_leaves_empty_columns_out():
    text = table_text([ROW, {**ROW, "cycle": 1, "labeled": 5000, "loss_rank_correlation": None}])
    cells = [line.split() for line in text.splitlines() if "71.23%" in line]
    assert cells == [
        ["1", "2,500", "71.23%", "70.00%", "1.250", "0.034", "0.412", "100.0", "20.0", "2.0"],
        ["2", "5,000", "71.23%", "70.00%", "1.250", "0.034", "-", "100.0", "20.0", "2.0"],
    ]
    assert "pseudo" not in text
    assert "query" not in text
    assert "pseudo" in table_text([{**ROW, "pseudo_label_rate": 0.5}])


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
def test_the_table_fits_the_width_and_repeats_its_first_columns(width):
    rows = [{**ROW, "cycle": k, "labeled": 2500 * (k + 1), "query_seconds": 12345.6} for k in range(40)]
    lines = table_text(rows, width).splitlines()
    assert all(len(line) <= width for line in lines)
    if width >= 60:
        tables = sum(line.split()[:2] == ["cycle", "labeled"] for line in lines)
        assert tables == {60: 3, 80: 2, 200: 1}[width]
        assert sum("12,345.6" in line for line in lines) == 40


def test_no_rows_make_an_empty_table():
    assert "71" not in table_text([])


def test_the_result_names_folder_and_area():
    console = pipe(60)
    folder = Path("outputs/digits") / ("sslpm+query=entropy+ssl.threshold=0.8" * 2) / "seed0-[0123abcd]"
    print_result(console, [ROW], folder, 0.65432)
    lines = console.file.getvalue().splitlines()
    assert "area under the budget curve  65.43%" in lines
    assert f"files  {folder}" in lines
    print_result(console, [], folder, None)


def test_durations():
    texts = {
        -1.0: "0.0s",
        0.04: "0.0s",
        9.94: "9.9s",
        9.96: "10s",
        59.7: "1m 00s",
        192: "3m 12s",
        7500: "2h 05m",
    }
    assert {seconds: duration(seconds) for seconds in texts} == texts
