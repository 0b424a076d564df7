"""Turns: several runs of one process, each in a thread of its own, of which one works at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore

import torch
from torch import Tensor

from sslpl.process_state import ProcessState

POLL_SECONDS = 2e-5  # between two looks for a run that can go on, while all of them wait for their device

Ready = Callable[[], bool]


class _Run:
    """A run that takes turns: what it waits for, and the signal that its turn has come."""

    def __init__(self) -> None:
        self.turn = Semaphore(0)
        self.ready: Ready = always

    def can_go_on(self) -> bool:
        """True if the run can go on; also if finding out fails, because the run itself then meets the error."""
        try:
            return self.ready()
        except Exception:
            return True


def always() -> bool:
    """Returns True: what a run waits for that can go on at any time."""
    return True


class Turns:
    """Hands the turn from one run of a process to the next, in a ring; each finds torch's global state as it left it.

    So every run executes the code of a single run, and all that is global is used by the run whose turn it is. A thread
    that has not joined, such as the only one of a single run, is never kept waiting.
    """

    def __init__(self, runs: int = 1) -> None:
        self.runs = runs  # at a time, at most
        self.signal: int | None = None  # the last signal that this process received, for all runs
        self._initial = ProcessState.current() if runs > 1 else None
        self._ring: deque[_Run] = deque()  # the first one works
        self._lock = Lock()  # of the ring, which a run joins before it has a turn

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Takes part in the turns inside the context, from the process state in which the turns were created."""
        self._join()
        try:
            if self._initial is not None:
                self._initial.copy().restore()
            yield
        finally:
            self._leave()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Lets the other runs work while the context waits for something outside of this process, such as a person."""
        if not self._ring:
            yield
            return
        state = ProcessState.current()
        self._leave()
        try:
            yield
        finally:
            self._join()
            state.restore()

    def pass_on(self, ready: Ready = always) -> None:
        """Lets the other runs take their turns; returns when it is this run's turn again and `ready()` is true."""
        if not self._ring:
            return
        run = self._ring[0]
        run.ready = ready
        with self._lock:
            self._ring.rotate(-1)
        chosen = self._choose()
        if chosen is not run:
            state = ProcessState.current()
            chosen.turn.release()
            run.turn.acquire()
            state.restore()
        run.ready = always

    def wait_for(self, values: Tensor) -> Tensor:
        """Returns a tensor once its device has computed it; the other runs work in the meantime."""
        if self._ring and values.is_cuda:
            self.pass_on(torch.cuda.current_stream(values.device).record_event().query)
        return values

    def _join(self) -> None:
        run = _Run()
        with self._lock:
            self._ring.append(run)
            is_first = len(self._ring) == 1
        if not is_first:
            run.turn.acquire()

    def _leave(self) -> None:
        with self._lock:
            self._ring.popleft()
            is_last = not self._ring
        if not is_last:
            self._choose().turn.release()

    def _choose(self) -> _Run:
        """Moves the next run that can go on to the front of the ring; returns it."""
        while True:
            with self._lock:
                for _ in range(len(self._ring)):
                    if self._ring[0].can_go_on():
                        return self._ring[0]
                    self._ring.rotate(-1)
            time.sleep(POLL_SECONDS)


ALONE = Turns()  # the turns of a single run
