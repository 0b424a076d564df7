"""Refine: several strategies filter the pool, level by level, and one selects from the rest (Huseljic et al. 2026)."""

from collections.abc import Mapping, Sequence
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
    pool costs no more than a small one. The score is that of `last`.
    """
    context.predictions, context.labeled_predictions  # noqa: B018  # computed once, for all parts
    part, rounds = subset, max(1, batches // max(1, len(strategies)))
    each_in_turn = [strategy for strategy in strategies.values() for _ in range(rounds)]
    for _ in range(depth):
        context = context.restricted_to(union_of_batches(context, n, rng, each_in_turn, part))
        if len(context.unlabeled) > max_pool:
            context = subsample(context, n, max_pool, rng)
        part = max(n, int(alpha * len(context.unlabeled)))
    return last(context, n, rng)


def union_of_batches(
    context: QueryContext, n: int, rng: Generator, strategies: Sequence[QueryStrategy], part: int
) -> Tensor:
    """Returns the images that any of the strategies selects, ascending, each n from a random part of its own."""
    batches = [strategy(subsample(context, n, part, rng), n, rng).index for strategy in strategies]
    union: Tensor = torch.unique(torch.cat(batches))  # ascending
    return union
