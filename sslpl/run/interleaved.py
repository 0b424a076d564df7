"""Executes the runs of a sweep in this process: several take turns, each in a thread and CUDA stream of its own."""

import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from sslpl.config.plans import Plan
from sslpl.recording.signals import Interrupted, handle_signals
from sslpl.run.errors import SIGNAL_BASE, ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.gpus import reserve_gpu
from sslpl.run.jobs import JobResult, result_state
from sslpl.run.launch import launch
from sslpl.run.outcome import Outcome, Slot
from sslpl.turns import Turns
from sslpl.types import UserError

MOST_RUNS = 32  # PyTorch has that many CUDA streams for a GPU; a further run would share the stream of another


def runs_at_once(options: Mapping[str, Any]) -> int:
    """Returns the number of runs at a time that the launcher's options request; UserError if it is invalid."""
    count = options["at_once"]
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_RUNS:
        raise UserError(f"hydra.launcher.at_once={count}: must be a whole number from 1 to {MOST_RUNS}")
    return count


def run_interleaved(plans: Mapping[int, Plan], at_once: int) -> tuple[dict[int, JobResult], int | None]:
    """Executes plans in this process; returns their results by index, and the signal that stopped them, if any."""
    if uses_gpu(plans):
        torch.cuda.init()  # type: ignore[no-untyped-call]  # or the turns would not know the generators of the GPUs
    runs = InterleavedRuns(plans, Turns(min(at_once, len(plans))))
    with (
        reserve_gpu(*gpus_to_reserve(plans), f"{len(plans)} interleaved runs") as device,
        handle_signals(runs.stop),
        ThreadPoolExecutor(runs.turns.runs, thread_name_prefix="interleaved-run") as threads,
    ):
        results = list(threads.map(partial(runs.execute, device), plans.values()))
    return dict(zip(plans, results, strict=True)), runs.turns.signal


class InterleavedRuns:
    """The runs of a sweep that take turns, and the CUDA streams that no run uses at the moment."""

    def __init__(self, plans: Mapping[int, Plan], turns: Turns) -> None:
        self.turns = turns
        self.total, self.ended = len(plans), 0
        self.free_streams: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)

    def stop(self, signum: int) -> None:
        """Requests every run to end after its current step."""
        self.turns.signal = signum
        print(f"{signal.Signals(signum).name}: every run finishes its current step, then saves", flush=True)

    def execute(self, reserved: str | None, plan: Plan) -> JobResult:
        """Executes a plan, in turn with those in other threads; the lines that it prints begin with its name."""
        configured = plan.config["runtime"]["device"]
        device = reserved if configured in ("auto", "cuda") else None
        slot = Slot(device, f"{plan.method_name}/{plan.folder.name}", turns=self.turns)
        with self.turns.joined(), self.own_stream(device or configured):
            try:
                result: JobResult = catch_errors(partial(self.attempt, plan, slot))
            except SweepStopped as stop:
                result = stop.report
            self.print_end(plan, result)
        return result

    def attempt(self, plan: Plan, slot: Slot) -> Outcome:
        """Executes a plan; raises Interrupted if a signal came before its first turn."""
        if self.turns.signal is not None:
            raise Interrupted(self.turns.signal)
        return launch(plan, slot=slot)

    def print_end(self, plan: Plan, result: JobResult) -> None:
        """Prints a line for a run that has ended, and the error if it failed."""
        if not isinstance(result, ErrorReport) or result.code < SIGNAL_BASE:
            print_error(result)
        self.ended += 1
        if plan.config["runtime"]["progress"] != "none":
            print(f"{self.ended} of {self.total}  {result_state(result)}  {plan.folder}", flush=True)

    @contextmanager
    def own_stream(self, device: str) -> Iterator[None]:
        """Makes all CUDA work of this thread use a stream that no other run uses meanwhile; does nothing on a CPU.

        Captured graphs and the workspaces of cuBLAS belong to a stream, so that runs which shared one would write into
        each other's. No more streams are created than runs at a time: PyTorch would hand out the same ones again.
        """
        if not torch.cuda.is_available() or device == "cpu":
            yield
            return
        where = torch.device("cuda" if device == "auto" else device)
        free = self.free_streams[where]
        stream = free.pop() if free else torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            free.append(stream)


def uses_gpu(plans: Mapping[int, Plan]) -> bool:
    """True if a plan may be executed on a GPU of this machine."""
    return torch.cuda.is_available() and any(plan.config["runtime"]["device"] != "cpu" for plan in plans.values())


def gpus_to_reserve(plans: Mapping[int, Plan]) -> tuple[int, int]:
    """Returns the number of GPUs of which one is reserved for all plans, none if they select their own; and the number
    of sweeps that may share it."""
    runtimes = [plan.config["runtime"] for plan in plans.values()]
    needed = any(runtime["device"] in ("auto", "cuda") and not runtime["dry_run"] for runtime in runtimes)
    return torch.cuda.device_count() if needed else 0, runtimes[0]["jobs_per_gpu"]
