"""Cluster-Margin: low margins from many clusters (Citovsky et al. 2021)."""

import torch
from torch import Generator, Tensor

from sslpl.clustering.linkage import complete_linkage
from sslpl.query.context import needs_clusters
from sslpl.query.scorers import probability_margins
from sslpl.query.selection import ranked, round_robin, select_rows
from sslpl.types import Count, QueryContext, Selection


@needs_clusters
def cluster_margin(
    context: QueryContext, n: int, rng: Generator, *, margin_factor: Count = 10, cluster_size: Count = 10
) -> Selection:
    """Selects random images of the lowest margins, from clusters in turn, the smallest first (Citovsky et al. 2021).

    The `margin_factor` x n lowest margins are considered, as in the paper's experiments on Open Images, but at most
    `budget.candidates`, since only these are clustered (`check_pool` prints so). The paper clusters the whole pool once
    for all cycles, by average linkage cut at a threshold. Here the `budget.candidates` of lowest margin are clustered
    in every cycle, as the embeddings have changed, by exact complete linkage into clusters of `cluster_size` images on
    average (ours: the authors published no code, and the paper's value could not be confirmed). Memory grows with the
    square of the candidates, not of the pool. The size of a cluster counts its images among the lowest margins. The
    score is 1 - margin.
    """
    score = 1 - probability_margins(context.predictions.logits).cpu()
    best = ranked(score, rng)[: max(context.candidates, n)]
    embedding = context.predictions.embedding[best.to(context.device)]
    cluster = complete_linkage(embedding, max(1, round(len(best) / cluster_size))).cpu()
    low = torch.randperm(min(margin_factor * n, len(best)), generator=rng)
    rows = low[smallest_first(cluster[low], rng)[:n]]
    return select_rows(context, best[rows], score)


def smallest_first(cluster: Tensor, rng: Generator) -> Tensor:
    """Returns rows [N] in round-robin order from the smallest cluster to the largest, ties in random order."""
    size = torch.bincount(cluster)
    return round_robin(cluster, ranked(-size, rng).argsort())
