"""Checks, before anything is trained, that a query strategy can handle the size of the pool."""

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
from sslpl.messages import print_notice
from sslpl.query.context import needs
from sslpl.types import UserError

DIMENSIONS = 512  # assumed for the embeddings, before the network is built; the clustering uses the actual number


def check_pool(query: Callable[..., Any], budget: Budget, pool: int, device: torch.device) -> None:
    """Raises UserError if a strategy cannot handle a pool of this many images, for a budget in images."""
    if budget.cycles == 1:
        return
    n, most = int(budget.per_cycle), int(budget.candidates)
    check_query(query, n, pool - int(budget.initial), most, device)
    candidates, considered = max(most, n), n * (unwrap_partial(query)[1].get("margin_factor") or 0)
    if needs(query).clusters and considered > candidates:
        line = f"{function_name(query)}: selects from budget.candidates={candidates:,} lowest margins"
        print_notice(f"{line} instead of {considered:,} (query.margin_factor x per_cycle)")


def check_query(query: Callable[..., Any], n: int, unlabeled: int, candidates: int, device: torch.device) -> None:
    """Raises UserError if a strategy cannot select n of this many unlabeled images."""
    required, keywords, name = needs(query), unwrap_partial(query)[1], function_name(query)
    limits = [keywords.get("subset"), n * (keywords.get("prefilter") or 0)]
    considered_images = min([unlabeled, *(max(limit, n) for limit in limits if limit)])
    if required.subset and is_large(considered_images) and keywords.get("subset") is None:
        raise UserError(
            f"query.subset=null: must be a number for {name} with {unlabeled:,} unlabeled images, which it would "
            f"compare or hold in memory together; null allows at most {LARGE:,}"
        )
    if required.faiss and is_large(considered_images) and find_spec("faiss") is None:
        raise UserError(f"{name} needs faiss for more than {LARGE:,} unlabeled images: pip install faiss-cpu")
    if required.clusters:
        check_candidates(min(max(candidates, n), considered_images), device)


def unwrap_partial(query: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the function inside nested partials, and the arguments already bound to it."""
    function, keywords = query, dict[str, Any]()
    while isinstance(function, partial):
        keywords = function.keywords | keywords
        function = function.func
    return function, keywords


def function_name(query: Callable[..., Any]) -> str:
    """Returns the name of the function inside nested partials, for messages."""
    return getattr(unwrap_partial(query)[0], "__name__", "query")


def check_candidates(candidates: int, device: torch.device) -> None:
    """Raises UserError if complete linkage of this many candidates needs more memory than is free."""

    def needed(count: int) -> int:
        return complete_linkage_bytes(count, DIMENSIONS, device.type)

    free = free_memory(device)
    if needed(candidates) > free:
        most = bisect_right(range(candidates), free, key=needed) - 1
        raise UserError(
            f"budget.candidates={candidates}: must be lower: clustering them needs {needed(candidates) / 2**30:,.1f} "
            f"GiB, and {free / 2**30:.1f} GiB are free on {device}, enough for {most:,}"
        )
