"""Measures the time and peak memory of two implementations of the same operation."""

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
MIB = 2**20
clock = time.perf_counter  # what `timed` reads; `run.py --processor-time` replaces it


class Case(NamedTuple):
    """An operation to benchmark: our implementation and the conventional one, if there is one."""

    ours: Callable[[], Any]
    baseline: Callable[[], Any] | None
    calls: tuple[int, int] = (1, 1)  # per sample, of ours and of the baseline: a short call is timed many times
    repeats: int = 5
    warm_up: bool = True
    # Further keys of the row, from the row and the results of the last calls.
    extra: Callable[[Row, Any, Any], Row] = lambda _row, _ours, _baseline: {}


def compare(name: str, case: Case, device: torch.device, repeats: int | None = None) -> Row:
    """Times both implementations alternately; returns medians, their ratio and the peak memory that each added."""
    sides = {"baseline": (case.baseline, case.calls[1]), "ours": (case.ours, case.calls[0])}
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    row: Row = {"name": name, "load_average": os.getloadavg()[0]}
    results: dict[str, Any] = {}
    for turn in range(-int(case.warm_up), repeats or case.repeats):
        for side, (call, calls) in sides.items():
            if call is None:
                continue
            if f"{side}_peak_mib" not in row:  # in the first call: the warm-up, unless the case has none
                with PeakMemory(device) as peak:
                    took, results[side] = timed(call, calls, device)
                row[f"{side}_peak_mib"] = peak.added / MIB
            else:
                took, results[side] = timed(call, calls, device)
            if turn >= 0:
                seconds[side].append(took)
    row.update(summary(seconds))
    row.update(case.extra(row, results["ours"], results.get("baseline")))
    return row


def summary(seconds: dict[str, list[float]]) -> Row:
    """Returns the median seconds of both implementations, their ratio and all samples."""
    ours = statistics.median(seconds["ours"])
    baseline = statistics.median(seconds["baseline"]) if seconds["baseline"] else None
    return {
        "baseline_seconds": baseline,
        "ours_seconds": ours,
        "ratio": None if baseline is None else baseline / ours,
        "baseline_samples": seconds["baseline"],
        "ours_samples": seconds["ours"],
    }


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> tuple[float, Any]:
    """Returns the mean seconds of several calls in a row, and the result of the last one."""
    synchronize(device)
    since = clock()
    for _ in range(calls):
        result = call()
    synchronize(device)
    return (clock() - since) / calls, result


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The peak memory that a block of code adds: of the process on a CPU, of the device on CUDA.

    On a CPU it is the peak resident set minus the one before, after freed memory was returned to the system. Linux
    counts the peak after a reset; where that is not permitted, a thread samples it every 5 ms.
    """

    added: float  # bytes

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        trim_heap()
        self.before = self.peak_bytes = resident_bytes()
        self.sampler = None if reset_peak_resident() else ResidentSampler(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(self.device)
        elif self.sampler is None:
            peak_bytes = 1024 * proc_status_kib("VmHWM")
        else:
            self.sampler.stop()
            peak_bytes = self.peak_bytes
        self.added = max(0, peak_bytes - self.before)


class ResidentSampler(threading.Thread):
    """Updates the peak resident set of the process every 5 ms."""

    def __init__(self, peak: PeakMemory) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = peak, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.peak.peak_bytes = max(self.peak.peak_bytes, resident_bytes())

    def stop(self) -> None:
        self.ended.set()
        self.join()


def trim_heap() -> None:
    """Makes glibc return freed memory to the system, so that later allocations are visible."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_resident() -> bool:
    """Resets the kernel's peak resident set; returns False where that is not permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return 1024 * proc_status_kib("VmHWM") < 1.01 * resident_bytes() + MIB
    except (OSError, LookupError):
        return False


def resident_bytes() -> int:
    """Returns the resident set of the process in bytes, 0 if unknown."""
    try:
        return 1024 * proc_status_kib("VmRSS")
    except (OSError, LookupError):
        return 0


def proc_status_kib(key: str) -> int:
    """Returns a value of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], title: str, caption: str, width: int) -> None:
    """Prints a table, `width` characters wide if not on a terminal."""
    table = Table(*columns, title=title, caption=caption)
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)
