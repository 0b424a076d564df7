"""Query strategies: which unlabeled images to have labeled next."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.types import Count, Picked, QueryContext

Scorer = Callable[[QueryContext, Generator], Tensor]
Selector = Callable[[Tensor, Tensor, int, int, Generator], Tensor]


def random(context: QueryContext, n: int, rng: Generator) -> Picked:
    """n unlabeled images, uniformly and without replacement."""
    return picked(context, torch.randperm(len(context.unlabeled), generator=rng)[:n])


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
