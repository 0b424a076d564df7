"""Refine: several strategies filter the pool, level by level, and one selects from the rest (Huseljic et al. 2026)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from sslpl.query.selection import subsample
from sslpl.types import Count, CountOrZero, QueryContext, QueryStrategy, Selection, Share


def refine(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    strategies: Mapping[str, Any],
    last: QueryStrategy,
    depth: CountOrZero = 5,
    batches: Count = 100,
    subset: Count = 5000,
    alpha: Share = 0.4,
    max_pool: Count = 10000,
) -> Selection:
    """Selects by the strategy `last` among the images that survive `depth` levels of filtering (Refine).

    Huseljic et al. 2026, with the values of their code: at each level, each of the `strategies` selects
    `batches` / (number of strategies) times n images of a random part of the pool, which has `subset` images at the
    first level and a share `alpha` of the pool at later ones, but at least n. The images of all batches, or a random
    `max_pool` of them, are the pool of the next level. The strategies never see more than a part, so that a large
    pool costs no more than a small one. A strategy that selects the same images of the whole pool twice is not asked
    again at that level (ours). The score is that of `last`.
    """
    context.predictions, context.labeled_predictions  # noqa: B018  # computed once, for all parts
    part, rounds = subset, max(1, batches // max(1, len(strategies)))
    for _ in range(depth):
        selected = [
            batch for strategy in strategies.values() for batch in batches_by(strategy, context, n, rng, rounds, part)
        ]
        context = context.restricted_to(torch.unique(torch.cat(selected)))  # ascending
        if len(context.unlabeled) > max_pool:
            context = subsample(context, n, max_pool, rng)
        part = max(n, int(alpha * len(context.unlabeled)))
    return last(context, n, rng)


def batches_by(
    strategy: QueryStrategy, context: QueryContext, n: int, rng: Generator, rounds: int, part: int
) -> list[Tensor]:
    """Returns batches of n images, ascending, that a strategy selects, each from a random part of its own.

    If a part is the whole pool and the first two batches are the same, there are no more than these.
    """
    batches: list[Tensor] = []
    whole = part >= len(context.unlabeled)
    for _ in range(rounds):
        batches.append(strategy(subsample(context, n, part, rng), n, rng).index.sort().values)
        if whole and len(batches) == 2 and torch.equal(*batches):
            break
    return batches
