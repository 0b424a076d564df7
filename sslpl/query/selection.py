"""What strategies share: ranking with random ties, random subsets, round robin over clusters."""

import torch
from torch import Generator, Tensor

from sslpl.types import QueryContext, Selection


def ranked(score: Tensor, rng: Generator) -> Tensor:
    """Positions [N] from the highest score to the lowest, ties in random order."""
    order = torch.randperm(len(score), generator=rng)
    return order[torch.argsort(score.cpu()[order], descending=True, stable=True)]


def select_rows(context: QueryContext, rows: Tensor, score: Tensor | None = None) -> Selection:
    """The unlabeled images at `rows` [n], with their scores [U] if there are any."""
    rows = rows.cpu()
    chosen = torch.full((len(rows),), torch.nan) if score is None else score.cpu()[rows]
    return Selection(context.unlabeled[rows], chosen.double())


def subsample(context: QueryContext, n: int, subset: int | None, rng: Generator) -> QueryContext:
    """The same with a random subset of the unlabeled images, at least n, if one is asked for."""
    if subset is None:
        return context
    some = torch.randperm(len(context.unlabeled), generator=rng)[: max(subset, n)]
    return context.restricted_to(context.unlabeled[some.sort().values])


def round_robin(cluster: Tensor, place: Tensor) -> Tensor:
    """Rows [N] in the order of taking turns: in each round the next row of every cluster that has one left.

    `cluster` [N] names the clusters of the rows, which are taken in their given order; `place` [K] says when in a
    round each cluster has its turn.
    """
    grouped = cluster.argsort(stable=True)
    size = torch.bincount(cluster, minlength=len(place))
    turn = torch.empty_like(cluster)
    turn[grouped] = torch.arange(len(cluster)) - (size.cumsum(0) - size)[cluster[grouped]]
    return (turn * len(place) + place[cluster]).argsort()
