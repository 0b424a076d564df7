"""What became of a run, and where it runs."""

from typing import NamedTuple

from sslpl.distributed.world import SINGLE_PROCESS, World


class Outcome(NamedTuple):
    """What became of a plan: finished, resumed (and finished), skipped, reckoned, waiting (for labels), or elsewhere
    (another process's)."""

    state: str
    aubc: float | None = None
    note: str = ""  # what a person is to do


class Slot(NamedTuple):
    """Where one of several processes runs a plan: the GPU that it was given, the name that its lines begin with, and
    the processes that share the run."""

    device: str | None = None
    name: str = ""
    world: World = SINGLE_PROCESS


THIS_PROCESS = Slot()


class RunFailed(Exception):
    """A run ended before its time; its one line says why."""
