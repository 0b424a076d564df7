"""Shared parts of strategies: ranking with random ties, random subsets, held-out images, round robin over clusters."""

import torch
from torch import Generator, Tensor

from sslpl.types import QueryContext, Selection, UserError


def ranked(score: Tensor, rng: Generator) -> Tensor:
    """Returns the indices [N] from the highest score to the lowest, ties in random order."""
    order = torch.randperm(len(score), generator=rng)
    return order[torch.argsort(score.cpu()[order], descending=True, stable=True)]


def select_rows(context: QueryContext, rows: Tensor, score: Tensor | None = None) -> Selection:
    """Selects the unlabeled images at `rows` [n], with their scores from `score` [U] or NaN."""
    rows = rows.cpu()
    chosen = torch.full((len(rows),), torch.nan) if score is None else score.cpu()[rows]
    return Selection(context.unlabeled[rows], chosen.double())


def check_not_negative(score: Tensor, use: str) -> None:
    """Raises a UserError that names the use of the scores if one of them is negative."""
    if bool((score < 0).any()):
        raise UserError(f"{use}: choose a scorer without negative ones")


def subsample(context: QueryContext, n: int, subset: int | None, rng: Generator) -> QueryContext:
    """Returns the context restricted to a random subset of at least n unlabeled images; None keeps all."""
    if subset is None:
        return context
    rows = torch.randperm(len(context.unlabeled), generator=rng)[: max(subset, n)]
    return context.restricted_to(context.unlabeled[rows.sort().values])


def hold_out(context: QueryContext, n: int, count: int, rng: Generator) -> tuple[Tensor, QueryContext]:
    """Returns the rows of `count` random unlabeled images, at most half, and a context of the others, at least n."""
    order = torch.randperm(len(context.unlabeled), generator=rng)
    count = min(count, len(order) // 2, len(order) - n)
    return order[:count].to(context.device), context.restricted_to(context.unlabeled[order[count:].sort().values])


def round_robin(cluster: Tensor, rank: Tensor) -> Tensor:
    """Returns the rows [N] in round-robin order over their clusters: each round has the next row of each cluster left.

    `cluster` [N] is the cluster of each row, and rows of a cluster keep their order; `rank` [K] is the rank of each
    cluster within a round.
    """
    return (earlier_rows(cluster) * len(rank) + rank[cluster]).argsort()


def earlier_rows(cluster: Tensor) -> Tensor:
    """Counts, for each row [N], the earlier rows of its cluster."""
    grouped = cluster.argsort(stable=True)
    size = torch.bincount(cluster)
    count = torch.empty_like(cluster)
    count[grouped] = torch.arange(len(cluster)) - (size.cumsum(0) - size)[cluster[grouped]]
    return count
