"""One process at a time in a run's folder."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"
POLL_SECONDS = 0.5


@contextmanager
def run_lock(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has a run's folder to itself; False while another one has it, unless `wait` waits for that.

    The system gives up a lock with its process, however that ends: a dead owner's folder is free. OSError where the
    folder cannot be made.
    """
    with file_lock(folder / NAME, wait) as mine:
        yield mine


@contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """The same of any lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=POLL_SECONDS)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def first_free_lock(paths: Sequence[Path], waiting: Callable[[], None]) -> Iterator[int]:
    """The place of a lock that this process then has to itself, the first that is free; waits for one, says so once."""
    told = False
    while True:
        for place, path in enumerate(paths):
            with file_lock(path, wait=False) as mine:
                if mine:
                    yield place
                    return
        if not told:
            waiting()
        told = True
        time.sleep(POLL_SECONDS)


def remove_lock(folder: Path) -> None:
    """Removes the lock file of a finished run, which nobody will run again."""
    (folder / NAME).unlink(missing_ok=True)
