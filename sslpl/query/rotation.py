"""Strategies that cluster the images and take from one cluster after the other."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.query import large
from sslpl.query.context import needs_clusters, needs_faiss, needs_no_label
from sslpl.query.kmeans import k_means
from sslpl.query.linkage import complete_linkage
from sslpl.query.neighbors import mean_neighbor_distance, nearest
from sslpl.query.selectors import ranked
from sslpl.query.strategies import picked
from sslpl.query.uncertainty import margins
from sslpl.types import Count, CountOrZero, Picked, QueryContext


def round_robin(cluster: Tensor, place: Tensor) -> Tensor:
    """Rows [N] in the order of taking turns: in each round the next row of every cluster that has one left.

    `cluster` [N] names the clusters of the rows, which are taken in their given order; `place` [K] says when in a
    round each cluster has its turn.
    """
    grouped = cluster.argsort(stable=True)
    size = torch.bincount(cluster, minlength=len(place))
    turn = torch.empty_like(cluster)
    turn[grouped] = torch.arange(len(cluster)) - (size.cumsum(0) - size)[cluster[grouped]]
    return (turn * len(place) + place[cluster]).argsort()


@needs_clusters
def cluster_margin(
    context: QueryContext, n: int, rng: Generator, *, margin_factor: Count = 10, cluster_size: Count = 10
) -> Picked:
    """Of the `margin_factor` x n lowest margins random ones, from clusters in turn, small ones first (Cluster-Margin).

    Citovsky et al. 2021, with the 10 and 10 of their largest experiment. They cluster the whole pool by average
    linkage, once for all cycles, at a threshold that gives clusters of `cluster_size` images on average. Here the
    `budget.candidates` of lowest margin are clustered in every cycle, as the embeddings have changed, into as many
    clusters as give that average, by the exact complete linkage that is here already: compact clusters as well, and
    memory that grows with the square of the candidates, not of the pool. A cluster's size counts its images among the
    lowest margins. The score is 1 - margin.
    """
    score = 1 - margins(context.predictions.logits).cpu()
    best = ranked(score, rng)[: max(context.candidates, n)]
    embedding = context.predictions.embedding[best.to(context.device)]
    cluster = complete_linkage(embedding, max(1, round(len(best) / cluster_size))).cpu()
    low = torch.randperm(min(margin_factor * n, len(best)), generator=rng)
    rows = low[smallest_first(cluster[low], rng)[:n]]
    return picked(context, best[rows], score)


def smallest_first(cluster: Tensor, rng: Generator) -> Tensor:
    """Rows [N] by taking turns, in each round from the smallest cluster to the largest, equal ones in random order."""
    size = torch.bincount(cluster)
    return round_robin(cluster, ranked(-size, rng).argsort())


@needs_faiss
@needs_no_label
def typiclust(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    max_clusters: Count = 500,
    neighbors: Count = 20,
    min_cluster_size: CountOrZero = 5,
    steps: Count = 100,
) -> Picked:
    """The most typical image of each cluster with the fewest labels, large clusters first (TypiClust).

    Hacohen et al. 2022, with the values of their code: k-means of all L2-normalized embeddings into min(labeled + n,
    `max_clusters`) clusters; those of at most `min_cluster_size` images come last. The score is the typicality,
    which is computed once, not anew after each choice: a cluster gives its images in that order when its turn comes.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    seen = normalize(context.labeled_predictions.embedding)
    points = large.Gathered(context.predictions.embedding, order, unit=True)
    count = min(len(seen) + n, max_clusters)
    known, cluster = unit_clusters(seen, points, count, steps, rng)
    typical = typicality(points, cluster, neighbors).cpu()
    labels = torch.bincount(known, minlength=count)
    rows = typical_rows(cluster, typical, labels, min_cluster_size)[:n]
    score = torch.empty_like(typical)
    score[order] = typical
    return picked(context, order[rows], score)


def unit_clusters(
    seen: Tensor, points: large.Gathered, count: int, steps: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    """The clusters of labeled images [L] and of unlabeled ones [U], on the CPU; centers learn from both.

    In a large pool they learn from unlabeled images alone (ours), which are so many more.
    """
    if large.is_large(len(points)):
        found = large.k_means(points, count, rng, steps=steps)
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


def typicality(points: Tensor | large.Gathered, cluster: Tensor, neighbors: int) -> Tensor:
    """1 / mean distance [N] to the nearest others of the same cluster, at most half of it (Hacohen et al. 2022).

    The distance is increased by 1e-5, as in the published code; the only one of its cluster has 0.
    """
    typical = torch.empty(len(points), dtype=torch.float64, device=points.device)
    mean_distance = large.mean_neighbor_distance if large.is_large(len(points)) else mean_neighbor_distance
    ends = torch.bincount(cluster).cumsum(0)[:-1]
    for members in torch.tensor_split(cluster.argsort(stable=True), ends):
        rows = members.to(points.device)
        distance = mean_distance(points[rows], min(neighbors, max(1, len(members) // 2)))
        typical[rows] = 1 / (distance + 1e-5)
    return typical
