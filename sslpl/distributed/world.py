"""The processes that share a run, as torchrun starts them, and what of it each of them holds."""

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

TIMEOUT = timedelta(days=1)  # that the others wait for a query, or for a folder that another command holds


class World(NamedTuple):
    """The processes of a run, and which of them this is (`rank`, from 0); the first leads."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    store: Any = None  # torch's Store: what outlives a process

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes, shows and decides."""
        return self.rank == 0

    @property
    def lost_message(self) -> str:
        """What is said when a process was lost that did not say why."""
        return f"one of {self.size} processes was lost; rerun the same command to resume from the last checkpoint"

    def shard_sizes(self, count: int) -> list[int]:
        """How many of `count` things each process holds: as many as the others, or one more."""
        return [count // self.size + (rank < count % self.size) for rank in range(self.size)]

    def shard(self, count: int) -> slice:
        """Which of `count` things this process holds."""
        lengths = self.shard_sizes(count)
        return slice(sum(lengths[: self.rank]), sum(lengths[: self.rank + 1]))

    def paired_shard(self, size: int) -> Tensor:
        """The places in a batch that this process holds: whole pairs (i, n - 1 - i), paired alike among themselves.

        n is the even size of the batch; the last process holds the last image of an odd one, at its end, where the
        ranking losses leave it out as they do in the whole batch.
        """
        even, pairs = size // 2 * 2, self.shard(size // 2)
        last = torch.arange(even, size if self.rank == self.size - 1 else even)
        first, second = torch.arange(pairs.start, pairs.stop), torch.arange(even - pairs.stop, even - pairs.start)
        return torch.cat([first, second, last])


SINGLE_PROCESS = World()


@contextmanager
def process_group() -> Iterator[World]:
    """The processes that torchrun has started, met; those that do not lead are silent from here on."""
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
    except SystemExit as end:
        if not end.code:  # after a loss this might wait for whom is not there
            dist.destroy_process_group()
        raise


@contextmanager
def silenced(active: bool) -> Iterator[None]:
    """What is printed goes nowhere."""
    if not active:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
