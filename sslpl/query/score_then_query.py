"""The strategy that filters the pool by a score, and runs another strategy on what is left."""

import torch
from torch import Generator

from sslpl.query.score_then_select import Scorer
from sslpl.query.selection import ranked, select_rows, subsample
from sslpl.types import Count, QueryContext, QueryStrategy, Selection


def score_then_query(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    scorer: Scorer,
    strategy: QueryStrategy,
    subset: Count | None = None,
) -> Selection:
    """Runs a strategy on the `budget.candidates` unlabeled images of highest score, at least n of them (ours).

    Selective clustering considers the same candidates. The score is that of the scorer.
    """
    context = subsample(context, n, subset, rng)
    score = scorer(context, rng)
    candidates = ranked(score, rng)[: max(context.candidates, n)].sort().values
    selected = strategy(context.restricted_to(context.unlabeled[candidates]), n, rng).index
    return select_rows(context, torch.searchsorted(context.unlabeled, selected), score)
