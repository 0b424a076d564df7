"""What every query strategy has to keep to: `contract(strategy)` raises an AssertionError where one does not."""

import copy
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from querying import context, tabled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslpl.query.context import Context, needs
from sslpl.types import QueryStrategy

SIZES = [(60, 20, 1), (60, 20, 40), (2, 1, 1), (30, 1, 29)]  # pool, labeled, n
POOL = 4_000  # the pairs of so many images are more numbers than the scratch of a block or a clustering


def contract(strategy: QueryStrategy) -> None:
    """All checks, one after the other."""
    for check in CHECKS:
        check(strategy)


def picks_the_asked_number_of_distinct_unlabeled_images(strategy: QueryStrategy) -> None:
    for pool, labeled, n in SIZES:
        seen = context(pool, labeled)
        picked = strategy(seen, n, generator())
        assert len(picked.index) == len(picked.score) == n
        assert len(set(picked.index.tolist())) == n
        assert set(picked.index.tolist()) <= set(seen.unlabeled.tolist())
        assert (picked.index.dtype, picked.score.dtype) == (torch.int64, torch.float64)
        assert (picked.index.device.type, picked.score.device.type) == ("cpu", "cpu")


def is_deterministic_for_a_seed(strategy: QueryStrategy) -> None:
    first, second = (strategy(context(), 7, generator()) for _ in range(2))
    assert first.index.tolist() == second.index.tolist()
    assert torch.equal(first.score.nan_to_num(), second.score.nan_to_num())


def breaks_ties_by_the_generator(strategy: QueryStrategy) -> None:
    orders = {tuple(strategy(context(ties=True), 7, generator(seed)).index.tolist()) for seed in range(3)}
    assert len(orders) > 1


def changes_nothing_but_its_generator(strategy: QueryStrategy) -> None:
    """Networks (with batch norm's statistics, modes, gradients), predictions, images, global random state stay."""
    seen = context()
    before, state = copy.deepcopy(everything(seen)), global_random_state()
    strategy(seen, 7, generator())
    for old, new in zip(before, everything(seen), strict=True):
        assert torch.equal(old, new) if isinstance(old, Tensor) else old == new
    assert global_random_state() == state


def sees_no_hidden_label(strategy: QueryStrategy) -> None:
    """What it picks does not depend on hidden labels; a strategy marked as an oracle's is refused without them."""
    blind = context(truth=None)
    if needs(strategy).oracle:
        with pytest.raises(PermissionError):
            strategy(blind, 7, generator())
    else:
        with_them = strategy(context(), 7, generator()).index.tolist()
        assert strategy(blind, 7, generator()).index.tolist() == with_them


def holds_no_matrix_of_the_pool(strategy: QueryStrategy) -> None:
    """No tensor has a number for each pair of unlabeled images, and numpy's arrays together have not either.

    A clustering of the `candidates` may hold their pairs: there are 200 here.
    """
    seen, most = tabled(POOL), POOL * (POOL - 1) // 2
    with LargestTensor():
        strategy(context(), 7, generator())  # what is imported only now is no array
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            strategy(seen, 10, generator())
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.numbers < most, f"a tensor of {largest.numbers:,} numbers for {POOL:,} images"
    assert arrays < 4 * most, f"arrays of {arrays:,} bytes for {POOL:,} images"


CHECKS: tuple[Callable[[QueryStrategy], None], ...] = (
    picks_the_asked_number_of_distinct_unlabeled_images,
    is_deterministic_for_a_seed,
    breaks_ties_by_the_generator,
    changes_nothing_but_its_generator,
    sees_no_hidden_label,
    holds_no_matrix_of_the_pool,
)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that is stored while the mode is on."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):  # of an expanded one only what is stored
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.numbers = max(self.numbers, stored)
        return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def global_random_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate())


def everything(seen: Context) -> list[Any]:
    """All that a strategy could change of what it is shown."""
    networks = [seen.backbone, seen.module]
    parts: list[Any] = [seen.unlabeled, seen.labeled, seen.labels, *seen.images.batches([torch.arange(60)])]
    for known in (seen.predictions, seen.labeled_predictions, seen.previous, *seen.committee):
        parts.extend(value for value in known if value is not None)
    for network in networks:
        parts.extend(network.state_dict().values())
        parts.extend(part.training for part in network.modules())
        parts.extend((p.requires_grad, p.grad is None) for p in network.parameters())
    return parts
