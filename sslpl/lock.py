"""One process at a time in a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"
POLL_SECONDS = 0.5


@contextmanager
def owned(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has a run's folder to itself; False while another one has it, unless `wait` waits for that.

    The system gives up a lock with its process, however that ends: a dead owner's folder is free. OSError where the
    folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=POLL_SECONDS)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def forget(folder: Path) -> None:
    """Removes the lock file of a finished run, which nobody will run again."""
    (folder / NAME).unlink(missing_ok=True)
