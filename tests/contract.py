"""The contract of query strategies: `contract(strategy)` raises an AssertionError if one violates it."""

import copy
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from querying import context, table_context
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslpl.query.context import Context, needs
from sslpl.types import QueryStrategy

SIZES = [(60, 20, 1), (60, 20, 40), (2, 1, 1), (30, 1, 29)]  # pool, labeled, n
POOL = 4_000  # large enough that its pairs exceed the buffers of a block or a clustering


def contract(strategy: QueryStrategy) -> None:
    """Runs all checks."""
    for check in CHECKS:
        check(strategy)


def selects_n_distinct_unlabeled_images(strategy: QueryStrategy) -> None:
    for pool, labeled, n in SIZES:
        seen = context(pool, labeled)
        selection = strategy(seen, n, generator())
        assert len(selection.index) == len(selection.score) == n
        assert len(set(selection.index.tolist())) == n
        assert set(selection.index.tolist()) <= set(seen.unlabeled.tolist())
        assert (selection.index.dtype, selection.score.dtype) == (torch.int64, torch.float64)
        assert (selection.index.device.type, selection.score.device.type) == ("cpu", "cpu")


def is_deterministic_for_a_seed(strategy: QueryStrategy) -> None:
    first, second = (strategy(context(), 7, generator()) for _ in range(2))
    assert first.index.tolist() == second.index.tolist()
    assert torch.equal(first.score.nan_to_num(), second.score.nan_to_num())


def breaks_ties_by_the_generator(strategy: QueryStrategy) -> None:
    orders = {tuple(strategy(context(ties=True), 7, generator(seed)).index.tolist()) for seed in range(3)}
    assert len(orders) > 1


def changes_nothing_but_its_generator(strategy: QueryStrategy) -> None:
    """Networks (also modes and gradients), predictions, images and global random state do not change."""
    seen = context()
    before, state = copy.deepcopy(mutable_values(seen)), global_random_state()
    strategy(seen, 7, generator())
    for old, new in zip(before, mutable_values(seen), strict=True):
        assert torch.equal(old, new) if isinstance(old, Tensor) else old == new
    assert global_random_state() == state


def uses_no_hidden_label(strategy: QueryStrategy) -> None:
    """The selection does not depend on hidden labels; a strategy marked as using an oracle raises without them."""
    blind = context(truth=None)
    if needs(strategy).oracle:
        with pytest.raises(PermissionError):
            strategy(blind, 7, generator())
    else:
        with_them = strategy(context(), 7, generator()).index.tolist()
        assert strategy(blind, 7, generator()).index.tolist() == with_them


def allocates_no_matrix_of_the_pool(strategy: QueryStrategy) -> None:
    """Neither a tensor nor all numpy arrays together have an element for each pair of unlabeled images.

    A clustering of the `candidates` may store their pairs: there are 200 here.
    """
    seen, pairs = table_context(POOL), POOL * (POOL - 1) // 2
    with LargestTensor():
        strategy(context(), 7, generator())  # imports happen here, before memory is traced
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            strategy(seen, 10, generator())
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.numbers < pairs, f"a tensor of {largest.numbers:,} elements for {POOL:,} images"
    assert arrays < 4 * pairs, f"arrays of {arrays:,} bytes for {POOL:,} images"


CHECKS: tuple[Callable[[QueryStrategy], None], ...] = (
    selects_n_distinct_unlabeled_images,
    is_deterministic_for_a_seed,
    breaks_ties_by_the_generator,
    changes_nothing_but_its_generator,
    uses_no_hidden_label,
    allocates_no_matrix_of_the_pool,
)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor stored while the mode is active."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):  # of an expanded tensor, only the storage
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.numbers = max(self.numbers, stored)
        return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def global_random_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate())


def mutable_values(seen: Context) -> list[Any]:
    """Returns everything in a context that a strategy could change."""
    networks = [seen.backbone, seen.module]
    parts: list[Any] = [seen.unlabeled, seen.labeled, seen.labels, *seen.images.batches([torch.arange(60)])]
    for known in (seen.predictions, seen.labeled_predictions, seen.previous, *seen.committee):
        parts.extend(value for value in known if value is not None)
    for network in networks:
        parts.extend(network.state_dict().values())
        parts.extend(part.training for part in network.modules())
        parts.extend((p.requires_grad, p.grad is None) for p in network.parameters())
    return parts
