"""UncertainGCN: uncertainty of a graph network (Caramalau et al., CVPR 2021)."""

from torch import Generator

from sslpl.query.context import needs_subset
from sslpl.query.graph_network import GraphRecipe, train_graph_network
from sslpl.query.selection import ranked, select_rows, subsample
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection, Share, ShareBelowOne


@needs_subset
def uncertain_gcn(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    steps: Count = 200,
    hidden: Count = 128,
    dropout: ShareBelowOne = 0.3,
    rate: Positive = 1e-3,
    weight_decay: PositiveOrZero = 5e-4,
    unlabeled_weight: Positive = 1.2,
    margin: Share = 0.1,
    subset: Count | None = 10000,
) -> Selection:
    """Selects images whose confidence of being labeled is nearest to `margin` (Caramalau et al., CVPR 2021).

    The score is the negative distance to it, as in the published code.
    """
    recipe = GraphRecipe(steps, hidden, dropout, rate, weight_decay, unlabeled_weight)
    context = subsample(context, n, subset, rng)
    _, logit = train_graph_network(context, recipe, rng)
    score = -(logit[len(context.labeled) :].double().sigmoid() - margin).abs()
    return select_rows(context, ranked(score, rng)[:n], score)
