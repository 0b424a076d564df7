"""What a query would need of a large pool, found out before anything is trained."""

import sys
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from sslpl.budget import Budget
from sslpl.clustering.large_pools import LARGE, is_large
from sslpl.clustering.linkage import complete_linkage_bytes
from sslpl.memory import free_memory
from sslpl.query.context import needs
from sslpl.types import UserError

DIMENSIONS = 512  # of the embeddings, as a network not yet built may have; the clustering itself reckons with its own


def check_pool(query: Callable[..., Any], budget: Budget, pool: int, device: torch.device) -> None:
    """UserError where a strategy could not choose from a pool of so many images, for a budget in images."""
    if budget.cycles == 1:
        return
    wants, (function, keywords) = needs(query), unwrap_partial(query)
    unlabeled = pool - int(budget.initial)
    limits = [keywords.get("subset"), int(budget.per_cycle) * (keywords.get("prefilter") or 0)]
    seen = min([unlabeled, *(max(limit, int(budget.per_cycle)) for limit in limits if limit)])
    name = getattr(function, "__name__", "query")
    if wants.subset and is_large(seen) and keywords.get("subset") is None:
        raise UserError(
            f"query.subset=null: must be a number for {name} with {unlabeled:,} unlabeled images, which it would "
            f"compare or hold all at once: without it at most {LARGE:,} are allowed"
        )
    if wants.faiss and is_large(seen) and find_spec("faiss") is None:
        raise UserError(f"{name} needs faiss for more than {LARGE:,} unlabeled images: pip install faiss-cpu")
    if wants.clusters:
        candidates = max(int(budget.candidates), int(budget.per_cycle))
        check_candidates(min(candidates, seen), device)
        considered = int(budget.per_cycle) * (keywords.get("margin_factor") or 0)
        if considered > candidates:
            line = f"{name}: selects from budget.candidates={candidates:,} lowest margins instead of {considered:,}"
            print(f"sslpl: {line} (query.margin_factor x per_cycle)", file=sys.stderr, flush=True)


def unwrap_partial(query: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function inside of partial ones, and the arguments that are given to it already."""
    function, keywords = query, dict[str, Any]()
    while isinstance(function, partial):
        keywords = function.keywords | keywords
        function = function.func
    return function, keywords


def check_candidates(candidates: int, device: torch.device) -> None:
    """UserError if complete linkage of so many candidates needs more memory than is free."""

    def needed(count: int) -> int:
        return complete_linkage_bytes(count, DIMENSIONS, device.type)

    free = free_memory(device)
    if needed(candidates) > free:
        most = bisect_right(range(candidates), free, key=needed) - 1
        raise UserError(
            f"budget.candidates={candidates}: must be lower: clustering them needs {needed(candidates) / 2**30:,.1f} "
            f"GiB, and {free / 2**30:.1f} GiB are free on {device}, enough for {most:,}"
        )
