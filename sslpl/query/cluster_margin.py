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
    """Of the `margin_factor` x n lowest margins random ones, from clusters in turn, small ones first (Cluster-Margin).

    Citovsky et al. 2021, with the 10 and 10 of their largest experiment. They cluster the whole pool by average
    linkage, once for all cycles, at a threshold that gives clusters of `cluster_size` images on average. Here the
    `budget.candidates` of lowest margin are clustered in every cycle, as the embeddings have changed, into as many
    clusters as give that average, by the exact complete linkage that is here already: compact clusters as well, and
    memory that grows with the square of the candidates, not of the pool. A cluster's size counts its images among the
    lowest margins. The score is 1 - margin.
    """
    score = 1 - probability_margins(context.predictions.logits).cpu()
    best = ranked(score, rng)[: max(context.candidates, n)]
    embedding = context.predictions.embedding[best.to(context.device)]
    cluster = complete_linkage(embedding, max(1, round(len(best) / cluster_size))).cpu()
    low = torch.randperm(min(margin_factor * n, len(best)), generator=rng)
    rows = low[smallest_first(cluster[low], rng)[:n]]
    return select_rows(context, best[rows], score)


def smallest_first(cluster: Tensor, rng: Generator) -> Tensor:
    """Rows [N] by taking turns, in each round from the smallest cluster to the largest, equal ones in random order."""
    size = torch.bincount(cluster)
    return round_robin(cluster, ranked(-size, rng).argsort())
