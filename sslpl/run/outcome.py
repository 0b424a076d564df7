"""The outcome of a run, and the slot in which it is executed."""

from typing import NamedTuple

from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.turns import ALONE, Turns


class Outcome(NamedTuple):
    """The outcome of a plan: finished, resumed (and finished), skipped, estimated (a dry run), waiting (for labels), or
    running (in another process)."""

    state: str
    aubc: float | None = None
    note: str = ""  # what a person has to do


class Slot(NamedTuple):
    """Where a plan is executed: a GPU, the name that its printed lines begin with, the processes that share it, and the
    turns that it takes with other runs of its process."""

    device: str | None = None
    name: str = ""
    world: World = SINGLE_PROCESS
    turns: Turns = ALONE


THIS_PROCESS = Slot()


class RunFailed(Exception):
    """A run failed; its one line says why."""
