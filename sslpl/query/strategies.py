"""Query strategies: which unlabeled images to have labeled next."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_no_label
from sslpl.types import Count, Picked, QueryContext

Scorer = Callable[[QueryContext, Generator], Tensor]
Selector = Callable[[Tensor, Tensor, int, int, Generator], Tensor]


@needs_no_label
def random(context: QueryContext, n: int, rng: Generator) -> Picked:
    """n unlabeled images, uniformly and without replacement."""
    return picked(context, torch.randperm(len(context.unlabeled), generator=rng)[:n])


def class_balanced_random(context: QueryContext, n: int, rng: Generator, *, oracle_baseline: bool = False) -> Picked:  # noqa: ARG001
    """As many of each hidden class as possible, at random within it: an oracle's baseline, which no one could run."""
    order = torch.randperm(len(context.unlabeled), generator=rng)
    classes = context.oracle().cpu()[order]
    grouped = torch.argsort(classes, stable=True)
    count = torch.bincount(classes)
    turn = torch.empty_like(order)  # how many of its class come before it
    turn[grouped] = torch.arange(len(order)) - (count.cumsum(0) - count)[classes[grouped]]
    return picked(context, order[torch.argsort(turn, stable=True)[:n]])


def picked(context: QueryContext, rows: Tensor, score: Tensor | None = None) -> Picked:
    """The unlabeled images at `rows` [n], with their scores [U] if there are any."""
    rows = rows.cpu()
    chosen = torch.full((len(rows),), torch.nan) if score is None else score.cpu()[rows]
    return Picked(context.unlabeled[rows], chosen.double())


def subsampled(context: QueryContext, n: int, subset: int | None, rng: Generator) -> QueryContext:
    """The same with a random subset of the unlabeled images, at least n, if one is asked for."""
    if subset is None:
        return context
    some = torch.randperm(len(context.unlabeled), generator=rng)[: max(subset, n)]
    return context.only(context.unlabeled[some.sort().values])


def score_then_select(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    scorer: Scorer,
    selector: Selector,
    subset: Count | None = None,
) -> Picked:
    """Scores the unlabeled images, or a random subset of them, and selects n by score and embedding."""
    context = subsampled(context, n, subset, rng)
    score = scorer(context, rng)
    candidates = min(context.candidates, len(score))
    return picked(context, selector(score, context.predictions.embedding, n, candidates, rng), score)
