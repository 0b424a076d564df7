"""k-means: the image nearest to each centroid."""

import torch
from torch import Generator, Tensor

from sslpl.clustering import large_pools
from sslpl.clustering.k_means import Clusters, k_means
from sslpl.clustering.linkage_rounds import least
from sslpl.query.context import needs_faiss
from sslpl.query.scorers import probability_margins
from sslpl.query.selection import ranked, select_rows
from sslpl.types import Count, QueryContext, Selection


@needs_faiss
def kmeans(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    weighted: bool = False,
    prefilter: Count | None = None,
    steps: Count = 100,
) -> Selection:
    """The image nearest to each centroid of k-means with n clusters of the embeddings, the usual baseline.

    Zhdanov 2019 is `weighted`, by 1 - margin of the class probabilities, among the `prefilter` (10) times n lowest
    margins. An image of a random order stands in for each centroid without images of its own: where fewer than n
    embeddings differ.
    """
    uncertain = 1 - probability_margins(context.predictions.logits).cpu()
    order = torch.randperm(len(uncertain), generator=rng)
    if prefilter is not None:
        order = ranked(uncertain, rng)[: prefilter * n]
    mass = uncertain[order].clamp(min=1e-9) if weighted else None
    points = large_pools.GatheredRows(context.predictions.embedding, order)
    if large_pools.is_large(len(order)):
        clusters = large_pools.sampled_k_means(points, n, rng, mass, steps)
    else:
        clusters = k_means(points[torch.arange(len(order))], n, rng, mass, steps)
    rows = medoids(clusters).cpu()
    free = torch.ones(len(order), dtype=torch.bool)
    free[rows] = False
    return select_rows(context, order[torch.cat([rows, free.nonzero()[: n - len(rows), 0]])])


def medoids(clusters: Clusters) -> Tensor:
    """The row nearest to each center among its own points, the first of equals; none for a center without points."""
    label, count, rows = clusters.label, len(clusters.centers), len(clusters.label)
    closest = clusters.distance == least(clusters.distance, label, count)[label]
    candidate = torch.where(closest, torch.arange(rows, device=label.device), rows)
    first = candidate.new_full((count,), rows).scatter_reduce(0, label, candidate, "amin")
    return first[first < rows]
