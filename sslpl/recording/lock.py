"""File locks that let one process at a time work in a run's folder or on a GPU."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"
POLL_SECONDS = 0.5


def run_lock(folder: Path, wait: bool) -> AbstractContextManager[bool]:
    """Locks a run's folder in a context; it yields False if another process holds the lock and `wait` is False.

    The operating system releases a lock when its process ends, however that happens. OSError if the folder cannot be
    created.
    """
    return file_lock(folder / NAME, wait)


@contextmanager
def file_lock(path: Path, wait: bool) -> Iterator[bool]:
    """Locks a file; yields False if another process holds the lock and `wait` is False."""
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
def first_free_lock(paths: Sequence[Path], on_wait: Callable[[], None]) -> Iterator[int]:
    """Acquires the first free lock and yields its index; calls `on_wait` once if it has to wait for one."""
    waiting = False
    while True:
        for index, path in enumerate(paths):
            with file_lock(path, wait=False) as acquired:
                if acquired:
                    yield index
                    return
        if not waiting:
            on_wait()
        waiting = True
        time.sleep(POLL_SECONDS)


def remove_lock(folder: Path) -> None:
    """Removes the lock file of a finished run."""
    (folder / NAME).unlink(missing_ok=True)
