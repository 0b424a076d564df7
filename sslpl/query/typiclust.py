"""TypiClust: selects the most typical image of each cluster (Hacohen et al. 2022)."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.clustering import large_pools
from sslpl.clustering.k_means import k_means
from sslpl.clustering.neighbors import mean_neighbor_distance, nearest
from sslpl.query.context import needs_faiss, works_unlabeled
from sslpl.query.selection import round_robin, select_rows
from sslpl.types import Count, CountOrZero, QueryContext, Selection


@needs_faiss
@works_unlabeled
def typiclust(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    max_clusters: Count = 500,
    neighbors: Count = 20,
    min_cluster_size: CountOrZero = 5,
    steps: Count = 25,
) -> Selection:
    """Selects the most typical image of each cluster with the fewest labels, large clusters first (TypiClust).

    Hacohen et al. 2022, with the values of their code: k-means of all L2-normalized embeddings into min(labeled + n,
    `max_clusters`) clusters; those of at most `min_cluster_size` images come last. The score is the typicality, which
    is computed once and not again after each selection; it orders the images of a cluster. At most `steps` of Lloyd's
    algorithm (ours: the published code has mini-batches above 50 clusters).
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    labeled = normalize(context.labeled_predictions.embedding)
    points = large_pools.GatheredRows(context.predictions.embedding, order, unit=True)
    count = min(len(labeled) + n, max_clusters)
    labeled_cluster, cluster = unit_clusters(labeled, points, count, steps, rng)
    typical = typicality(points, cluster, neighbors).cpu()
    labels = torch.bincount(labeled_cluster, minlength=count)
    rows = typical_rows(cluster, typical, labels, min_cluster_size)[:n]
    score = torch.empty_like(typical)
    score[order] = typical
    return select_rows(context, order[rows], score)


def unit_clusters(
    labeled: Tensor, points: large_pools.GatheredRows, count: int, steps: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    """Returns the clusters of labeled [L] and unlabeled images [U], on the CPU; the centers are fitted to both.

    In a large pool they are fitted to unlabeled images only (ours), by far the majority.
    """
    if large_pools.is_large(len(points)):
        clusters = large_pools.sampled_k_means(points, count, rng, steps=steps)
        return nearest(labeled, clusters.centers)[1].cpu(), clusters.assignment.cpu()
    pool = torch.cat([labeled, points[torch.arange(len(points))]])
    cluster = k_means(pool, count, rng, steps=steps).assignment.cpu()
    return cluster[: len(labeled)], cluster[len(labeled) :]


def typical_rows(cluster: Tensor, typical: Tensor, labels: Tensor, min_cluster_size: int) -> Tensor:
    """Returns rows [N] in the order in which TypiClust selects them; `labels` [K] counts the labels per cluster."""
    size = torch.bincount(cluster, minlength=len(labels)) + labels
    largest = size.argsort(descending=True, stable=True)
    rank = largest[labels[largest].argsort(stable=True)].argsort()
    best = typical.argsort(descending=True, stable=True)
    rows = best[round_robin(cluster[best], rank)]
    small = (size <= min_cluster_size)[cluster[rows]]
    return torch.cat([rows[~small], rows[small]])


def typicality(points: Tensor | large_pools.GatheredRows, cluster: Tensor, neighbors: int) -> Tensor:
    """Computes 1 / mean distance [N] to the nearest neighbors in the cluster, at most half of it (Hacohen et al. 2022).

    The distance is increased by 1e-5, as in the published code, which averages squared distances where the paper
    averages distances. An image alone in its cluster has 0.
    """
    typical = torch.empty(len(points), dtype=torch.float64, device=points.device)
    mean_distance = (
        large_pools.approximate_neighbor_distance if large_pools.is_large(len(points)) else mean_neighbor_distance
    )
    boundaries = torch.bincount(cluster).cumsum(0)[:-1]
    for members in torch.tensor_split(cluster.argsort(stable=True), boundaries):
        rows = members.to(points.device)
        distance = mean_distance(points[rows], min(neighbors, max(1, len(members) // 2)))
        typical[rows] = 1 / (distance + 1e-5)
    return typical
