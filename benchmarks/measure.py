"""Timing two ways in turn, and the memory that each needs."""

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]
MIB = 2**20


class Case(NamedTuple):
    """One path, both ways."""

    ours: Callable[[], Any]
    baseline: Callable[[], Any] | None
    calls: tuple[int, int] = (1, 1)  # how often a sample calls ours and the baseline: a short call is timed many times
    repeats: int = 5
    warm_up: bool = True
    extra: Callable[[Row, Any, Any], Row] = lambda _row, _ours, _baseline: {}  # more keys, from the last results


def measured(name: str, case: Case, device: torch.device, repeats: int | None = None) -> Row:
    """Calls ours and the baseline in turn, and returns medians, their ratio and the memory that each added."""
    sides = {"baseline": (case.baseline, case.calls[1]), "ours": (case.ours, case.calls[0])}
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    row: Row = {"name": name, "load_average": os.getloadavg()[0]}
    results: dict[str, Any] = {}
    for turn in range(-int(case.warm_up), repeats or case.repeats):
        for side, (call, calls) in sides.items():
            if call is None:
                continue
            if f"{side}_peak_mib" not in row:  # the first call: a warm-up, or one too long to have one
                with Peak(device) as peak:
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
    """Medians of both sides, their ratio, and all the samples."""
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
    """Seconds of one of several calls in a row, and what the last one returned."""
    synchronize(device)
    since = time.perf_counter()
    for _ in range(calls):
        result = call()
    synchronize(device)
    return (time.perf_counter() - since) / calls, result


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """How much memory a block of code adds at its highest: of the process on a CPU, of the device on CUDA.

    On a CPU it is the highest resident set less the one before, when freed memory has been given back to the
    system. Linux counts the highest from the moment that it is told to forget the last one; where that is not
    allowed, a thread looks every 5 ms.
    """

    added: float  # bytes

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Peak":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        give_back_freed_memory()
        self.before = self.highest = resident()
        self.sampler = None if forget_highest() else Sampler(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            highest = torch.cuda.max_memory_allocated(self.device)
        elif self.sampler is None:
            highest = 1024 * status("VmHWM")
        else:
            self.sampler.stop()
            highest = self.highest
        self.added = max(0, highest - self.before)


class Sampler(threading.Thread):
    """Keeps the highest resident set of the process up to date."""

    def __init__(self, peak: Peak) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = peak, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.peak.highest = max(self.peak.highest, resident())

    def stop(self) -> None:
        self.ended.set()
        self.join()


def give_back_freed_memory() -> None:
    """Has glibc return what is freed to the system, so that it does not hide what comes next."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def forget_highest() -> bool:
    """Starts the count of the highest resident set anew; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return 1024 * status("VmHWM") < 1.01 * resident() + MIB
    except (OSError, LookupError):
        return False


def resident() -> int:
    """Bytes of the process in memory."""
    try:
        return 1024 * status("VmRSS")
    except (OSError, LookupError):
        return 0


def status(key: str) -> int:
    """A number of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
