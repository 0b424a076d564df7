"""Where all randomness starts: a generator for each (seed, purpose, cycle, epoch)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TypeVar

import torch
from torch import Generator, Tensor

T = TypeVar("T")


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments (ours)."""
    digest = blake2b(repr((seed, purpose, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rng(seed: int, purpose: str, *counters: int) -> Generator:
    """A CPU generator for one purpose, so that draws are the same on every device and need no saved state."""
    return Generator().manual_seed(derive_seed(seed, purpose, *counters))


def build_seeded(build: Callable[[], T], seed: int, purpose: str) -> T:
    """What `build` returns when it draws on the CPU from its own stream (initial weights), global state untouched."""
    with seeded_draws(torch.device("cpu"), seed, purpose):
        return build()


@contextmanager
def seeded_draws(device: torch.device, seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Seeds torch's global generators of the CPU and a device inside, and restores their states afterwards.

    Dropout, drop path and all else that takes no generator of its own draw from these. A CUDA graph reads seed and
    offset from the generator at each replay, so that a captured step draws what an eager one would.
    """
    generators = global_generators(device)
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(derive_seed(seed, purpose, *counters))
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def global_generators(device: torch.device) -> list[Generator]:
    """Torch's global generators of the CPU and, if it is a GPU, of a device."""
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]  # before it there are no generators
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def shuffled(index: Tensor, pool_size: int, generator: Generator) -> Tensor:
    """`index` in random order; two subsets of one pool keep the order of the images that they share."""
    keys = torch.rand(pool_size, generator=generator, dtype=torch.float64)
    return index[torch.argsort(keys[index], stable=True)]
