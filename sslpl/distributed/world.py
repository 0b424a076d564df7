"""The processes of a run, as started by torchrun, and their shards of the data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(days=1)  # other ranks may wait long, for a query or for the lock of the folder


class World(NamedTuple):
    """The rank of this process and the number of processes; rank 0 writes the files."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_size: int = 1
    store: Any = None  # torch's Store, which outlives a process

    @property
    def is_rank_zero(self) -> bool:
        """True in the process that writes files, prints and runs queries."""
        return self.rank == 0

    @property
    def lost_message(self) -> str:
        """The error message when a process was lost without publishing why."""
        return f"one of {self.size} processes was lost; rerun the same command to resume from the last checkpoint"

    def shard_sizes(self, count: int) -> list[int]:
        """Returns the shard size of each rank for `count` items; sizes differ by at most one."""
        return [count // self.size + (rank < count % self.size) for rank in range(self.size)]

    def shard(self, count: int) -> slice:
        """Returns the shard of `count` items of this process."""
        lengths = self.shard_sizes(count)
        return slice(sum(lengths[: self.rank]), sum(lengths[: self.rank + 1]))

    def paired_shard(self, size: int) -> Tensor:
        """Returns this process's positions in a batch: pairs (i, n - 1 - i), which remain pairs within the shard.

        n is the batch size rounded down to even. The last process appends the last image of an odd batch, which the
        ranking losses drop, as they do in the whole batch.
        """
        even, pairs = size // 2 * 2, self.shard(size // 2)
        unpaired = torch.arange(even, size if self.rank == self.size - 1 else even)
        first, second = torch.arange(pairs.start, pairs.stop), torch.arange(even - pairs.stop, even - pairs.start)
        return torch.cat([first, second, unpaired])


SINGLE_PROCESS = World()


@contextmanager
def process_group() -> Iterator[World]:
    """Initializes the process group of torchrun and yields the world; ranks other than 0 print nothing inside."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS
        return
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), store)
    try:
        with silenced(not world.is_rank_zero):
            yield world
    except SystemExit as error:
        if not error.code:  # after a lost process this could wait forever
            dist.destroy_process_group()
        raise


@contextmanager
def silenced(active: bool) -> Iterator[None]:
    """Suppresses stdout and stderr if active."""
    if not active:
        yield
        return
    with Path(os.devnull).open("w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
        yield
