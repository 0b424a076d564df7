"""TypiClust: the most typical image of each cluster (Hacohen et al. 2022)."""

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
    steps: Count = 100,
) -> Selection:
    """The most typical image of each cluster with the fewest labels, large clusters first (TypiClust).

    Hacohen et al. 2022, with the values of their code: k-means of all L2-normalized embeddings into min(labeled + n,
    `max_clusters`) clusters; those of at most `min_cluster_size` images come last. The score is the typicality,
    which is computed once, not anew after each choice: a cluster gives its images in that order when its turn comes.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    seen = normalize(context.labeled_predictions.embedding)
    points = large_pools.GatheredRows(context.predictions.embedding, order, unit=True)
    count = min(len(seen) + n, max_clusters)
    known, cluster = unit_clusters(seen, points, count, steps, rng)
    typical = typicality(points, cluster, neighbors).cpu()
    labels = torch.bincount(known, minlength=count)
    rows = typical_rows(cluster, typical, labels, min_cluster_size)[:n]
    score = torch.empty_like(typical)
    score[order] = typical
    return select_rows(context, order[rows], score)


def unit_clusters(
    seen: Tensor, points: large_pools.GatheredRows, count: int, steps: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    """The clusters of labeled images [L] and of unlabeled ones [U], on the CPU; centers learn from both.

    In a large pool they learn from unlabeled images alone (ours), which are so many more.
    """
    if large_pools.is_large(len(points)):
        found = large_pools.sampled_k_means(points, count, rng, steps=steps)
        return nearest(seen, found.centers)[1].cpu(), found.label.cpu()
    every = torch.cat([seen, points[torch.arange(len(points))]])
    cluster = k_means(every, count, rng, steps=steps).label.cpu()
    return cluster[: len(seen)], cluster[len(seen) :]


def typical_rows(cluster: Tensor, typical: Tensor, labels: Tensor, min_cluster_size: int) -> Tensor:
    """Rows [N] of clusters that hold so many `labels` [K], in the order in which TypiClust takes them."""
    size = torch.bincount(cluster, minlength=len(labels)) + labels
    largest = size.argsort(descending=True, stable=True)
    place = largest[labels[largest].argsort(stable=True)].argsort()
    best = typical.argsort(descending=True, stable=True)
    rows = best[round_robin(cluster[best], place)]
    small = (size <= min_cluster_size)[cluster[rows]]
    return torch.cat([rows[~small], rows[small]])


def typicality(points: Tensor | large_pools.GatheredRows, cluster: Tensor, neighbors: int) -> Tensor:
    """1 / mean distance [N] to the nearest others of the same cluster, at most half of it (Hacohen et al. 2022).

    The distance is increased by 1e-5, as in the published code, which averages squared distances where the paper
    averages distances. The only image of its cluster has 0.
    """
    typical = torch.empty(len(points), dtype=torch.float64, device=points.device)
    mean_distance = (
        large_pools.approximate_neighbor_distance if large_pools.is_large(len(points)) else mean_neighbor_distance
    )
    ends = torch.bincount(cluster).cumsum(0)[:-1]
    for members in torch.tensor_split(cluster.argsort(stable=True), ends):
        rows = members.to(points.device)
        distance = mean_distance(points[rows], min(neighbors, max(1, len(members) // 2)))
        typical[rows] = 1 / (distance + 1e-5)
    return typical
