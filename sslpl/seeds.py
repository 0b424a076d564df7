"""Seeded random number generators: an independent stream for each (seed, purpose, cycle, epoch)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TypeVar

import torch
from torch import Generator, Tensor

T = TypeVar("T")


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Returns a 63-bit seed that is a hash of the arguments (ours)."""
    digest = blake2b(repr((seed, purpose, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rng(seed: int, purpose: str, *counters: int) -> Generator:
    """Returns a CPU generator for one purpose: draws are the same on every device, and no state needs to be saved."""
    return Generator().manual_seed(derive_seed(seed, purpose, *counters))


def build_seeded(build: Callable[[], T], seed: int, purpose: str) -> T:
    """Returns `build()`, with torch's global CPU generator seeded for the call only (initial weights)."""
    with seeded_draws(torch.device("cpu"), seed, purpose):
        return build()


@contextmanager
def seeded_draws(device: torch.device, seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Context manager that seeds torch's global generators of the CPU and `device` and restores them on exit.

    Dropout, drop path and other layers without a generator argument draw from these. A CUDA graph reads seed and offset
    from the generator at each replay, so a captured step draws the same numbers as an eager one.
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
    """Returns torch's global generators of the CPU and, if it is a GPU, of `device`."""
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]  # the generators do not exist before it
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def shuffled(index: Tensor, pool_size: int, generator: Generator) -> Tensor:
    """Returns `index` in random order; images shared by two subsets of a pool have the same relative order in both."""
    keys = torch.rand(pool_size, generator=generator, dtype=torch.float64)
    return index[torch.argsort(keys[index], stable=True)]
