"""Signals that ask a run to stop: it saves and ends between two steps, all its processes at the same one."""

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
    """A signal asked the run to stop; all is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class SignalListener(Protocol):
    """Is told of a signal."""

    signal: int | None


@contextmanager
def listen_for_signals(
    listener: SignalListener, say: Callable[[str], None], world: World = SINGLE_PROCESS
) -> Iterator[None]:
    """SIGINT, SIGTERM and a lost terminal end the run after its current step; a second signal ends it at once.

    So does the signal by which a scheduler tells a job to make room (SIGUSR2), where somebody listens to it.
    In a thread nothing can be listened to. Of several processes each may be told, and more than once, and torchrun
    tells them all when it has lost one: what follows is said and done once they agree, or why they cannot.
    """

    def note(signum: int) -> None:
        listener.signal = signum
        if world.size == 1:
            say(f"{signal.Signals(signum).name}: finishing the current step, then saving")

    with handle_signals(note, once=world.size == 1):
        yield


@contextmanager
def handle_signals(note: Callable[[int], None], once: bool = True) -> Iterator[None]:
    """Calls `note` with the signals that ask this process to end.

    With `once` only with the first of each kind, a second one is left alone; without it for as long as the process
    lives. In a thread nothing can be listened to.
    """
    if current_thread() is not main_thread():
        yield
        return

    def handle(signum: int, _: FrameType | None) -> None:
        if once:
            signal.signal(signum, before[signum])
        note(signum)

    named = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    named += [signum for signum in scheduler_signals() if callable(signal.getsignal(signum))]
    before = {int(signum): signal.getsignal(signum) for signum in named}
    before = {signum: handler for signum, handler in before.items() if handler != signal.SIG_IGN}  # as nohup sets it
    for signum in before:
        signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in before.items() if once else ():
            signal.signal(signum, handler)


def scheduler_signals() -> list[int]:
    """The signals by which a scheduler tells a job to make room: the one that submitit listens to."""
    return [int(getattr(signal, name)) for name in ("SIGUSR2",) if hasattr(signal, name)]


class FollowerObserver:
    """Observes a run in a process that does not lead it (see `cycle.Observer`): it stops where the others do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal: int | None = None

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Nothing is shown."""

    def on_step(self, state: State, step: Step) -> None:  # noqa: ARG002
        """Stops when a signal came to any process."""
        if stop := all_reduce_max(self.world, self.signal):
            raise Interrupted(stop)

    def on_phase_end(self, state: State) -> None:
        """The same between two phases."""
        if (stop := all_reduce_max(self.world, self.signal)) and state.phase != FINISHED:
            raise Interrupted(stop)
