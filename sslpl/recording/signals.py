"""Signals that stop a run: all its processes save and end after the same step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Protocol

from sslpl.distributed.collectives import all_reduce_max
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.schedule import FINISHED
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import Step


class Interrupted(Exception):
    """Raised after a signal, once the state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class SignalListener(Protocol):
    """An object whose `signal` is set to the number of the last signal received."""

    signal: int | None


@contextmanager
def listen_for_signals(
    listener: SignalListener, print_line: Callable[[str], None], world: World = SINGLE_PROCESS
) -> Iterator[None]:
    """Stores SIGINT, SIGTERM and SIGHUP in `listener`, so that the run ends after its current step.

    A second signal ends a single process immediately. SIGUSR2, by which a scheduler preempts a job, is handled too if
    it has a handler. Does nothing in a thread. Any of several processes may be signalled, also repeatedly, and torchrun
    signals all of them when it has lost one: they stop, and print why, once they have agreed on the signal.
    """

    def store(signum: int) -> None:
        listener.signal = signum
        if world.size == 1:
            print_line(f"{signal.Signals(signum).name}: finishing the current step, then saving")

    with handle_signals(store, once=world.size == 1):
        yield


@contextmanager
def handle_signals(callback: Callable[[int], None], once: bool = True) -> Iterator[None]:
    """Calls `callback` with the number of each signal that asks this process to end.

    With `once`, only the first signal of each kind is handled and the previous handlers are restored; without it, the
    handlers stay until the process ends. Does nothing in a thread, where Python allows no handlers.
    """
    if current_thread() is not main_thread():
        yield
        return

    def handle(signum: int, _: FrameType | None) -> None:
        if once:
            signal.signal(signum, previous[signum])
        callback(signum)

    signums = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signums += [signum for signum in scheduler_signals() if callable(signal.getsignal(signum))]
    previous = {int(signum): signal.getsignal(signum) for signum in signums}
    # A signal that is ignored, as nohup ignores SIGHUP, stays ignored.
    previous = {signum: handler for signum, handler in previous.items() if handler != signal.SIG_IGN}
    for signum in previous:
        signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in previous.items() if once else ():
            signal.signal(signum, handler)


def scheduler_signals() -> list[int]:
    """Returns the signals by which a scheduler preempts a job: SIGUSR2, which submitit handles, where it exists."""
    return [int(getattr(signal, name)) for name in ("SIGUSR2",) if hasattr(signal, name)]


class FollowerObserver:
    """The observer of a process other than rank 0 (see `sslpl.loop.Observer`): it stops when the others stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal: int | None = None

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Shows nothing: only rank 0 does."""

    def on_step(self, state: State, step: Step) -> None:  # noqa: ARG002
        """Raises Interrupted if any process has received a signal."""
        if stop := all_reduce_max(self.world, self.signal):
            raise Interrupted(stop)

    def on_phase_end(self, state: State) -> None:
        """Raises Interrupted if any process has received a signal and the run has not finished."""
        if (stop := all_reduce_max(self.world, self.signal)) and state.phase != FINISHED:
            raise Interrupted(stop)
