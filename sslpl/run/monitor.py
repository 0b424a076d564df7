"""What a sweep's command does while other processes run its jobs: tells of their ends, and stops them all."""

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
    """The file that tells every job of a sweep to save and end, and the signal that asked for it."""

    def __init__(self, folder: Path) -> None:
        self.flag = folder / ".launcher" / f"stop-{os.getpid()}-{time.time_ns()}"
        self.signum: int | None = None

    def ask(self, signum: int, _: FrameType | None = None) -> None:
        """Writes the file at the first signal; KeyboardInterrupt at the second."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print(f"{signal.Signals(signum).name}: every run finishes its current step, then saves", flush=True)
        write_whole(self.flag, "")


@contextmanager
def monitored(plans: Sequence[Plan], launcher: str) -> Iterator[StopRequest]:
    """Tells of each run that ends, a line each; a signal stops the jobs, but for those of Slurm, which go on."""
    folder = Path(plans[0].config["runtime"]["output_dir"]).absolute()
    stop, over = StopRequest(folder), Event()
    teller = Thread(target=print_ends, args=(plans, over), name="sweep-watch", daemon=True)
    here = current_thread() is main_thread() and launcher != "submitit_slurm"
    names = ("SIGINT", "SIGTERM", "SIGHUP") if here else ()
    before = {name: signal.signal(getattr(signal, name), stop.ask) for name in names if hasattr(signal, name)}
    # Children inherit it (most do): Ctrl-C reaches them too, and would end those that are still starting.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} if here else set())
    teller.start()
    try:
        yield stop
    finally:
        over.set()
        teller.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
        with suppress(OSError):
            stop.flag.unlink(missing_ok=True)
            stop.flag.parent.rmdir()  # if nothing else lies there


def print_ends(plans: Sequence[Plan], over: Event) -> None:
    """Prints a line for each run that ends, until all is over; hands on the SIGINT that the main thread holds back."""
    shown = {plan.folder: status_time(plan.folder) for plan in plans if plan.config["runtime"]["progress"] != "none"}
    ended: set[Path] = set()
    last = False
    while not last:
        last = over.wait(POLL_SECONDS)
        if signal.SIGINT in signal.sigpending():
            signal.sigwait({signal.SIGINT})
            interrupt_main(signal.SIGINT)
        for folder, before in shown.items():
            if (now := status_time(folder)) == before:
                continue
            shown[folder] = now
            if (state := read_status(folder).get("state")) in END_STATES:
                ended.add(folder)
                print(f"{len(ended)} of {len(shown)}  {state}  {folder}", flush=True)


def status_time(folder: Path) -> int | None:
    """When the status of a run was written, in nanoseconds."""
    try:
        return (folder / "status.json").stat().st_mtime_ns
    except OSError:
        return None
