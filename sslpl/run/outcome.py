"""The outcome of a run, and the slot in which it is executed."""

from typing import NamedTuple

from sslpl.distributed.world import SINGLE_PROCESS, World


class Outcome(NamedTuple):
    """The outcome of a plan: finished, resumed (and finished), skipped, estimated (a dry run), waiting (for labels), or
    running (in another process)."""

    state: str
    aubc: float | None = None
    note: str = ""  # what a person has to do


class Slot(NamedTuple):
    """Where a plan is executed: a GPU, the name that its printed lines begin with, and the processes that share it."""

    device: str | None = None
    name: str = ""
    world: World = SINGLE_PROCESS


THIS_PROCESS = Slot()


class RunFailed(Exception):
    """A run failed; its one line says why."""
