"""CoreGCN (Caramalau et al., CVPR 2021)."""

import torch
from torch import Generator

from sslpl.clustering.k_center import k_center_greedy
from sslpl.query.context import needs_subset
from sslpl.query.graph_network import GraphRecipe, train_graph_network
from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection, ShareBelowOne


@needs_subset
def core_gcn(
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
    subset: Count | None = 10000,
) -> Selection:
    """Greedy k-center over the graph network's hidden features, from the labeled images on (Caramalau et al. 2021).

    The score is the network's probability of being unlabeled. The hidden features are used, as in the paper and
    in the authors' code since April 2021 (a040272); the code of TA-VAAL overwrites them with the backbone's embeddings,
    which makes it Core-set.
    """
    recipe = GraphRecipe(steps, hidden, dropout, rate, weight_decay, unlabeled_weight)
    context = subsample(context, n, subset, rng)
    features, logit = train_graph_network(context, recipe, rng)
    known = len(context.labeled)
    rows, _ = k_center_greedy(features[:known], features[known:], n, rng)
    return select_rows(context, rows, torch.sigmoid(-logit[known:].double()))
