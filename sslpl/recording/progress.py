"""Progress of a run: a live display on a terminal, plain lines elsewhere."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import linear_regression
from time import monotonic
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sslpl.recording.terminal import METRIC_COLUMNS, Row, Terminal, format_cell, silence_stdout

Mode = Literal["auto", "live", "plain", "none"]

LINE_SECONDS = 5.0  # the shortest time between two plain lines of a phase
WINDOW_SECONDS = 30.0  # the window over which speeds are measured, so that compiling and loading soon drop out


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def expected_seconds(finished: Sequence[tuple[int, float]], labeled: int) -> float:
    """Estimates the seconds of a cycle with `labeled` labels from the (labels, seconds) of finished cycles."""
    if len({labels for labels, _ in finished}) > 1:
        slope, intercept = linear_regression(*zip(*finished, strict=True))
        return max(0.0, slope * labeled + intercept)
    labels, seconds = finished[-1]
    return seconds * labeled / max(labels, 1)  # training, the longest phase, grows with the labels


class PhaseCounters:
    """Counts the finished units and images of one phase, and measures its recent speed."""

    def __init__(self, name: str = "", total: int = 0, done: int = 0, note: str = "") -> None:
        self.name, self.total, self.done, self.note = name, total, done, note
        self.done_before = done  # a resume
        self.images, self.epoch, self.started = 0, "", monotonic()
        self._samples = deque([(self.started, done, 0)])  # time, units, images

    def speeds(self, now: float) -> tuple[float, float]:
        """Returns units and images per second over the last WINDOW_SECONDS."""
        while len(self._samples) > 1 and now - self._samples[1][0] > WINDOW_SECONDS:
            self._samples.popleft()
        self._samples.append((now, self.done, self.images))
        start, done, images = self._samples[0]
        elapsed = max(now - start, 1e-3)
        return (self.done - done) / elapsed, (self.images - images) / elapsed


class Progress:
    """Shows the progress of a run; a context manager that clears its live display however the run ends."""

    def __init__(self, mode: Mode = "auto", *, cycles: int, console: Console | None = None, name: str = "") -> None:
        self.console, self._name = console or Terminal(), f"{name}  " if name else ""
        if mode == "auto":
            mode = "live" if self.console.file.isatty() else "plain"
        if mode == "live" and (name or not self.console.is_terminal or self.console.is_dumb_terminal):
            mode = "plain"  # the cursor cannot be moved, or other runs print here too (then each line names its run)
        self._mode, self._plain, self._cycles = mode, mode == "plain", cycles
        self._cycle = self._labeled = self._growth = 0
        self._cycle_started, self._is_whole_cycle, self._next_line = monotonic(), False, math.inf
        self._finished: list[tuple[int, float]] = []  # labels and seconds of the cycles that ran without a resume
        self._phase = PhaseCounters()
        self._live = Live(console=self.console, get_renderable=self._block, transient=True)

    def __enter__(self) -> Self:
        if self._mode == "live":
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def cycle(self, cycle: int, labeled: int) -> None:
        """Starts a cycle, counted from 0."""
        now = monotonic()
        if self._is_whole_cycle:
            self._finished.append((self._labeled, now - self._cycle_started))
        self._growth = labeled - self._labeled if self._labeled else 0
        self._cycle, self._labeled, self._cycle_started, self._is_whole_cycle = cycle, labeled, now, False
        self._phase, self._next_line = PhaseCounters(), math.inf

    def phase(self, name: str, total: int, done: int = 0, images: int | None = None) -> None:
        """Starts a phase of `total` units over `images` images, of which `done` units were done before a resume."""
        self._is_whole_cycle = done == 0 and (self._is_whole_cycle or name == "train")
        self._phase = PhaseCounters(name, total, done, "" if images is None else f"{images:,} images")
        self._next_line = self._phase.started + LINE_SECONDS
        # Short cycles print one line each; in long ones a phase is named at its start, as it may never advance.
        if self._plain and (not self._finished or self._finished[-1][1] > 4 * LINE_SECONDS):
            self.message(self._position())

    def advance(self, units: int, images: int, note: str = "") -> None:
        """Adds finished units, such as steps, and their images; cheap enough for an inner loop."""
        phase = self._phase
        phase.done += units
        phase.images += images
        phase.note = note or phase.note
        if self._plain and (now := monotonic()) >= self._next_line:
            # Lines become rarer in a long phase, so that the log of a night stays readable.
            self._next_line = now + min(60.0, max(LINE_SECONDS, (now - phase.started) / 10))
            self.message(f"{self._position()}  {self._speed(now)}")

    def exclude(self, seconds: float) -> None:
        """Leaves out of the cycle's duration some seconds in which people labeled."""
        self._cycle_started += seconds

    def seconds_to_next_query(self) -> float | None:
        """Estimates the seconds until the cycle's query is done; None if it is not known yet."""
        now, phase = monotonic(), self._phase
        done = phase.done - phase.done_before
        left = (phase.total - phase.done) * (now - phase.started) / done if done > 0 and phase.total > 1 else None
        if not self._finished:
            return left
        return max(expected_seconds(self._finished, self._labeled) - (now - self._cycle_started), left or 0.0)

    def epoch(self, epoch: int, epochs: int) -> None:
        """Shows the current epoch, counted from 0."""
        self._phase.epoch = f"epoch {epoch + 1}/{epochs}"

    def message(self, line: str) -> None:
        """Prints a permanent line."""
        if self._plain:  # not through rich, which would wrap and color it
            encoding = getattr(self.console.file, "encoding", None) or "utf-8"
            try:
                self.console.file.write(f"{self._name}{line}\n".encode(encoding, "replace").decode(encoding))
                self.console.file.flush()
            except BrokenPipeError:
                silence_stdout()
        elif self._mode == "live":
            self.console.print(line, markup=False, highlight=False)

    def cycle_done(self, row: Row, note: str = "") -> None:
        """Prints the line of a finished cycle from its row of metrics, and a note at its end."""
        seconds = [row[key] or 0.0 for key in METRIC_COLUMNS if key.endswith("_seconds") and format_cell(row, key)]
        parts = [f"cycle {format_cell(row, 'cycle')}/{self._cycles}", f"{format_cell(row, 'labeled')} labeled"]
        for name, key in (("accuracy", "test_accuracy"), ("loss rank correlation", "loss_rank_correlation")):
            parts += [f"{name} {text}"] if (text := format_cell(row, key)) else []
        self._phase, self._next_line = PhaseCounters(), math.inf
        self.message("  ".join([*parts, duration(sum(seconds)), *([note] if note else [])]))

    def _position(self) -> str:
        phase = self._phase
        labeled = f"{self._labeled:,} labeled" if self._labeled else ""
        cycle = f"cycle {self._cycle + 1}/{self._cycles}" if self._cycles else ""
        parts = (cycle, labeled, phase.name, phase.epoch, phase.note)
        return "  ".join(part for part in parts if part)

    def _speed(self, now: float) -> str:
        phase = self._phase
        units, images = phase.speeds(now)
        phase_left = max(phase.total - phase.done, 0) / units if units else math.inf
        share = min(phase.done / max(phase.total, 1), 1.0)
        parts = [f"{share:.0%}" if phase.total > 1 else duration(now - phase.started)]
        parts += [f"{images:,.0f} images/s"] if images else []
        parts += [f"{duration(phase_left)} left"] if phase_left < math.inf else []
        if self._finished and self._growth:
            run_left = self._run_left(now, phase_left if phase_left < math.inf else 0.0)
            parts.append(f"run about {duration(run_left)} left")
        return "  ".join(parts)

    def _run_left(self, now: float, phase_left: float) -> float:
        later = (self._labeled + k * self._growth for k in range(1, self._cycles - self._cycle))
        cycle_left = expected_seconds(self._finished, self._labeled) - (now - self._cycle_started)
        return max(cycle_left, phase_left) + sum(expected_seconds(self._finished, labeled) for labeled in later)

    def _block(self) -> RenderableType:
        """Returns the two lines of the live display, whose thread calls this a few times per second."""
        phase, width = self._phase, min(30, self.console.width // 4)
        total = phase.total if phase.total > 1 else None  # without a total the bar pulses
        bar = ProgressBar(total, phase.done, width=max(width, 1), complete_style="cyan", pulse_style="cyan")
        grid = Table.grid(padding=(0, 2))
        grid.add_row(bar, Text(self._speed(monotonic()), no_wrap=True, overflow="ellipsis"))
        head = Text(self._position(), no_wrap=True, overflow="ellipsis")
        head.stylize("bold", 0, len(head.plain.partition("  ")[0]))
        return Group(head, grid) if phase.name else head
