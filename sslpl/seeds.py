"""Where all randomness starts: a generator for each (seed, purpose, cycle, epoch)."""

from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

import torch
from torch import Generator, Tensor

T = TypeVar("T")


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments (ours)."""
    digest = blake2b(repr((seed, purpose, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rng(seed: int, purpose: str, *counters: int) -> Generator:
    """A CPU generator for one purpose, so that draws are the same on every device and need no saved state."""
    return Generator().manual_seed(derive(seed, purpose, *counters))


def seeded(build: Callable[[], T], seed: int, purpose: str) -> T:
    """What `build` returns when it draws on the CPU from its own stream (initial weights), global state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, purpose))
        return build()


def shuffled(index: Tensor, pool_size: int, generator: Generator) -> Tensor:
    """`index` in random order; two subsets of one pool keep the order of the images that they share."""
    keys = torch.rand(pool_size, generator=generator, dtype=torch.float64)
    return index[torch.argsort(keys[index], stable=True)]
