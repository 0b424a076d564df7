"""Strategies that spread the chosen images: k-center greedy, k-means, and k-means++ on gradients."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.query.kmeans import Clusters, k_means, plus_plus
from sslpl.query.neighbors import nearest, squares_to_one
from sslpl.query.rounds import least
from sslpl.query.selectors import ranked
from sslpl.query.strategies import picked
from sslpl.query.uncertainty import margins
from sslpl.types import Count, Picked, QueryContext


def core_set(context: QueryContext, n: int, rng: Generator) -> Picked:
    """The image farthest from the labeled and the chosen ones, n times (k-center greedy: Sener and Savarese 2018).

    The score is its Euclidean distance to the nearest of them, in the space of embeddings.
    """
    centers, points = context.labeled_predictions.embedding, context.predictions.embedding
    rows, radius = k_center_greedy(centers, points, n, rng)
    return Picked(context.unlabeled[rows], radius)


def k_center_greedy(centers: Tensor, points: Tensor, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Rows [n] of points [U, D], each the farthest from centers [L, D] and the rows before, and its distance [n].

    Distances are Euclidean, ties are broken by the generator, memory is linear in L and U; results on the CPU.
    """
    order = torch.randperm(len(points), generator=rng)  # the first of equals is then a random one
    points = points[order.to(points.device)]
    squares, mean = squares_to_one(points), points.mean(dim=0)
    distance = nearest(points - mean, centers - mean)[0].double().square()
    rows, radius = [], []
    for _ in range(n):
        row = distance.argmax(dim=0, keepdim=True)
        rows.append(row)
        radius.append(distance[row])
        distance = torch.minimum(distance, squares(row))
        distance[row] = -1  # below the copies of it, which have 0
    return order[torch.cat(rows).cpu()], torch.cat(radius).sqrt().cpu()


def kmeans(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    weighted: bool = False,
    prefilter: Count | None = None,
    steps: Count = 100,
) -> Picked:
    """The image nearest to each centroid of k-means with n clusters of the embeddings, the usual baseline.

    Zhdanov 2019 is `weighted`, by 1 - margin of the class probabilities, among the `prefilter` (10) times n lowest
    margins. An image of a random order stands in for each centroid without images of its own: where fewer than n
    embeddings differ.
    """
    uncertain = 1 - margins(context.predictions.logits).cpu()
    order = torch.randperm(len(uncertain), generator=rng)
    if prefilter is not None:
        order = ranked(uncertain, rng)[: prefilter * n]
    points = context.predictions.embedding[order.to(context.device)]
    mass = uncertain[order].clamp(min=1e-9) if weighted else None
    rows = medoids(k_means(points, n, rng, mass, steps)).cpu()
    free = torch.ones(len(order), dtype=torch.bool)
    free[rows] = False
    return picked(context, order[torch.cat([rows, free.nonzero()[: n - len(rows), 0]])])


def medoids(clusters: Clusters) -> Tensor:
    """The row nearest to each center among its own points, the first of equals; none for a center without points."""
    label, count, rows = clusters.label, len(clusters.centers), len(clusters.label)
    closest = clusters.distance == least(clusters.distance, label, count)[label]
    candidate = torch.where(closest, torch.arange(rows, device=label.device), rows)
    first = candidate.new_full((count,), rows).scatter_reduce(0, label, candidate, "amin")
    return first[first < rows]


def badge(context: QueryContext, n: int, rng: Generator) -> Picked:
    """k-means++ on the gradients of the last layer for the most likely class (BADGE: Ash et al. 2020).

    As in the published code, the first image is the one with the longest gradient.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    there = order.to(context.device)
    squares, norm = gradient_distances(context.predictions.logits[there], context.predictions.embedding[there])
    first = norm.argmax(dim=0, keepdim=True)
    return picked(context, order[plus_plus(squares, torch.ones_like(norm), n, rng, first).cpu()])


def gradient_distances(logits: Tensor, embedding: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Squared distances [N] of gradients to that of one row [1], as a function; and squared norms [N].

    A gradient is the outer product of a = p - onehot(argmax p) and the embedding h, so that <g_x, g_y> is
    <a_x, a_y> <h_x, h_y>: never is anything of images x classes x dimensions formed.
    """
    residual, hidden = logits.double().softmax(dim=1), embedding.double()
    likely = residual.argmax(dim=1, keepdim=True)
    residual = residual.scatter_add(1, likely, -torch.ones_like(likely, dtype=residual.dtype))
    norm = residual.square().sum(dim=1) * hidden.square().sum(dim=1)

    def squares(row: Tensor) -> Tensor:
        product = (residual @ residual[row][0]) * (hidden @ hidden[row][0])
        return (norm + norm[row] - 2 * product).clamp_(min=0)

    return squares, norm
