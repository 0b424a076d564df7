"""Query strategies: which unlabeled images to have labeled next."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.types import Count, Picked, Predictions, QueryContext

Scorer = Callable[[Predictions], Tensor]
Selector = Callable[[Tensor, Tensor, int, int, Generator], Tensor]


def random(context: QueryContext, n: int, rng: Generator) -> Picked:
    """n unlabeled images, uniformly and without replacement."""
    unlabeled = context.unlabeled
    chosen = unlabeled[torch.randperm(len(unlabeled), generator=rng)[:n]]
    return Picked(chosen, torch.full((n,), torch.nan, dtype=torch.float64))


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
    predictions = context.predictions
    if subset is not None:
        predictions = rows(predictions, torch.randperm(len(predictions.index), generator=rng)[: max(subset, n)])
    score = scorer(predictions)
    chosen = selector(score, predictions.embedding, n, min(context.candidates, len(score)), rng)
    return Picked(predictions.index[chosen], score.cpu()[chosen].double())


def rows(predictions: Predictions, at: Tensor) -> Predictions:
    """The predictions at some rows."""
    there = at.to(predictions.logits.device)
    losses = predictions.predicted_loss
    return Predictions(
        predictions.index[at],
        predictions.logits[there],
        predictions.embedding[there],
        losses[there] if losses is not None else None,
    )
