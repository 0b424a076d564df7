"""k-means: selects the image nearest to each centroid."""

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
    """Selects the image nearest to each centroid of k-means with n clusters of the embeddings, the usual baseline.

    Zhdanov 2019 is `weighted`, by 1 - margin of the class probabilities, among the `prefilter` (10) times n lowest
    margins. A random image replaces each centroid without images, as happens for fewer than n distinct embeddings.
    """
    order, weight = torch.randperm(len(context.unlabeled), generator=rng), None
    if weighted or prefilter is not None:  # otherwise logits are not needed
        uncertainty = 1 - probability_margins(context.predictions.logits).cpu()
        order = order if prefilter is None else ranked(uncertainty, rng)[: prefilter * n]
        weight = uncertainty[order].clamp(min=1e-9) if weighted else None
    embedding = context.predictions.embedding
    return select_rows(context, order[nearest_to_centroids(embedding, order, n, rng, weight, steps)])


def nearest_to_centroids(
    embedding: Tensor,
    order: Tensor,
    n: int,
    rng: Generator,
    weight: Tensor | None = None,
    steps: int = 100,
    unit: bool = False,
) -> Tensor:
    """Returns the positions [n] in `order`, an index of embeddings, of those nearest to the centroids of k-means.

    Embeddings are normalized if `unit`. The first unused positions replace centroids without images, so that `order`
    should be random.
    """
    rows = medoids(cluster_rows(embedding, order, n, rng, weight, steps, unit)).cpu()
    unused = torch.ones(len(order), dtype=torch.bool)
    unused[rows] = False
    return torch.cat([rows, unused.nonzero()[: n - len(rows), 0]])


def cluster_rows(
    embedding: Tensor,
    order: Tensor,
    n: int,
    rng: Generator,
    weight: Tensor | None = None,
    steps: int = 100,
    unit: bool = False,
) -> Clusters:
    """Clusters the embeddings at `order` by k-means with n clusters, in a large pool learned from a sample."""
    points = large_pools.GatheredRows(embedding, order, unit)
    if large_pools.is_large(len(order)):
        return large_pools.sampled_k_means(points, n, rng, weight, steps)
    return k_means(points[torch.arange(len(order))], n, rng, weight, steps)


def medoids(clusters: Clusters) -> Tensor:
    """Returns for each center the row of its nearest point, the first of ties; a center without points has none."""
    assignment, count, rows = clusters.assignment, len(clusters.centers), len(clusters.assignment)
    closest = clusters.distance == least(clusters.distance, assignment, count)[assignment]
    candidate = torch.where(closest, torch.arange(rows, device=assignment.device), rows)
    first = candidate.new_full((count,), rows).scatter_reduce(0, assignment, candidate, "amin")
    return first[first < rows]
