"""The strategy that combines a scorer and a selector."""

from collections.abc import Callable

from torch import Generator, Tensor

from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, QueryContext, Selection

Scorer = Callable[[QueryContext, Generator], Tensor]
Selector = Callable[[Tensor, Tensor, int, int, Generator], Tensor]


def score_then_select(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    scorer: Scorer,
    selector: Selector,
    subset: Count | None = None,
) -> Selection:
    """Scores the unlabeled images, or a random subset of them, and selects n of them by score and embedding."""
    context = subsample(context, n, subset, rng)
    score = scorer(context, rng)
    candidates = min(context.candidates, len(score))
    return select_rows(context, selector(score, context.predictions.embedding, n, candidates, rng), score)
