"""Monitors the jobs of a sweep in other processes: prints a line for each run that ends, and stops them on a signal."""

import os
import signal
import time
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

from sslpl.config.plans import Plan
from sslpl.files import write_whole
from sslpl.recording.status import read_status

POLL_SECONDS = 0.5
END_STATES = ("finished", "failed", "interrupted")


class StopRequest:
    """A file that requests every job of a sweep to save and end, and the signal that caused it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ".launcher" / f"stop-{os.getpid()}-{time.time_ns()}"
        self.signum: int | None = None

    def request(self, signum: int, _: FrameType | None = None) -> None:
        """Writes the file at the first signal; KeyboardInterrupt at the second."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print(f"{signal.Signals(signum).name}: every run finishes its current step, then saves", flush=True)
        write_whole(self.file, "")


@contextmanager
def monitored(plans: Sequence[Plan], launcher: str) -> Iterator[StopRequest]:
    """Prints a line for each run that ends; a signal stops the jobs, except those of Slurm, which continue."""
    folder = Path(plans[0].config["runtime"]["output_dir"]).absolute()
    stop, done = StopRequest(folder), Event()
    printer = Thread(target=print_ended_runs, args=(plans, done), name="sweep-monitor", daemon=True)
    handles_signals = current_thread() is main_thread() and launcher != "submitit_slurm"
    names = ("SIGINT", "SIGTERM", "SIGHUP") if handles_signals else ()
    handlers = {name: signal.signal(getattr(signal, name), stop.request) for name in names if hasattr(signal, name)}
    # Most child processes inherit the mask: Ctrl-C reaches them too, and would kill those that are still starting.
    original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} if handles_signals else set())
    printer.start()
    try:
        yield stop
    finally:
        done.set()
        printer.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, original_mask)
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)
        with suppress(OSError):
            stop.file.unlink(missing_ok=True)
            stop.file.parent.rmdir()  # fails unless the folder is empty


def print_ended_runs(plans: Sequence[Plan], done: Event) -> None:
    """Prints a line for each run that ends, until `done`; forwards the SIGINT that the main thread blocks to it."""
    written = {plan.folder: status_time(plan.folder) for plan in plans if plan.config["runtime"]["progress"] != "none"}
    ended: set[Path] = set()
    last = False
    while not last:
        last = done.wait(POLL_SECONDS)
        if signal.SIGINT in signal.sigpending():
            signal.sigwait({signal.SIGINT})
            interrupt_main(signal.SIGINT)
        for folder, previous in written.items():
            if (current := status_time(folder)) == previous:
                continue
            written[folder] = current
            if (state := read_status(folder).get("state")) in END_STATES:
                ended.add(folder)
                print(f"{len(ended)} of {len(written)}  {state}  {folder}", flush=True)


def status_time(folder: Path) -> int | None:
    """Returns the time at which the status of a run was written, in nanoseconds; None without a status."""
    try:
        return (folder / "status.json").stat().st_mtime_ns
    except OSError:
        return None
