"""Strategies that spread the chosen images: k-center greedy, k-means, and k-means++ on gradients."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.query.kmeans import Clusters, k_means, plus_plus
from sslpl.query.neighbors import nearest, squares_to_one
from sslpl.query.rounds import least
from sslpl.query.selectors import ranked
from sslpl.query.strategies import picked
from sslpl.types import Count, Picked, QueryContext


def core_set(context: QueryContext, n: int, rng: Generator) -> Picked:
    """The image farthest from the labeled and the chosen ones, n times (k-center greedy: Sener and Savarese 2018).

    The score is its Euclidean distance to the nearest of them, in the space of embeddings.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)  # the first of equals is then a random one
    points, centers = context.predictions.embedding[order.to(context.device)], context.labeled_predictions.embedding
    mean = points.mean(dim=0)
    start = nearest(points - mean, centers - mean)[0].double().square()
    rows, radius = k_center_greedy(squares_to_one(points), start, n)
    return Picked(context.unlabeled[order[rows.cpu()]], radius.sqrt().cpu())


def k_center_greedy(squares: Callable[[Tensor], Tensor], distance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Rows [n], each the farthest from the centers so far, and their squared distances [n] to the nearest of these.

    `squares` gives the squared distances [N] to one row [1], `distance` [N] those to the nearest center at the start.
    """
    rows, radius = [], []
    for _ in range(n):
        row = distance.argmax(dim=0, keepdim=True)
        rows.append(row)
        radius.append(distance[row])
        distance = torch.minimum(distance, squares(row))
        distance[row] = -1  # below the copies of it, which have 0
    return torch.cat(rows), torch.cat(radius)


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
    uncertain = 1 - margin(context.predictions.logits).cpu()
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


def margin(logits: Tensor) -> Tensor:
    """How far the highest class probability is above the second [N] (Scheffer et al. 2001); 1 with a single class."""
    highest = logits.double().softmax(dim=1).topk(min(2, logits.shape[1]), dim=1).values
    return highest[:, 0] - highest[:, 1:].sum(dim=1)


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
