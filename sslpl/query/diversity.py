"""Strategies that spread the chosen images: k-center greedy, k-means, and k-means++ on gradients."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.query import large
from sslpl.query.context import needs_faiss
from sslpl.query.kmeans import Clusters, k_means, plus_plus
from sslpl.query.neighbors import by_rows, nearest, squares_between
from sslpl.query.rounds import least
from sslpl.query.selectors import ranked
from sslpl.query.strategies import picked
from sslpl.query.uncertainty import margins
from sslpl.types import Count, Picked, Predictions, QueryContext

ROUNDED = 2.0**-18  # float32 leaves less than this share of their norms of the squared distance of copies
AT_ONCE = 256  # distances that are brought up to date together
RECENT = 16  # those which miss more choices are so apart from the others, for they cost more


def core_set(context: QueryContext, n: int, rng: Generator) -> Picked:
    """The image farthest from the labeled and the chosen ones, n times (k-center greedy: Sener and Savarese 2018).

    The score is its Euclidean distance to the nearest of them, in the space of embeddings.
    """
    centers, points = context.labeled_predictions.embedding, context.predictions.embedding
    rows, radius = k_center_greedy(centers, points, n, rng)
    return Picked(context.unlabeled[rows], radius)


def k_center_greedy(centers: Tensor, points: Tensor, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Rows [n] of points [U, D], each the farthest from centers [L, D] and the rows before, and its distance [n].

    Distances are Euclidean, ties are broken by the generator; beside the points, memory is linear in n + U; results on
    the CPU. Distances only shrink: one that counts but some of the rows bounds the one that counts all, and is brought
    up to date only while it is among the longest (as Minoux 1978 does for sets). Points far from any choice are never
    read again, which makes it quick where they lie in a file.
    """
    order = torch.randperm(len(points), generator=rng)  # the first of equals is then a random one
    place, origin = order.to(points.device), points.mean(dim=0)
    distance = nearest(points, centers, origin)[0].double().square()[place]
    chosen = torch.empty(n, points.shape[1], dtype=torch.float64, device=points.device)
    counted = torch.zeros_like(place)  # how many of the chosen a distance counts
    rows, radius = [], []
    for count in range(n):
        while counted[row := distance.argmax()] < count:
            some = stale(distance, counted, row, count)
            since = int(counted[some].min())
            near = squares_between((points[place[some]] - origin).double(), chosen[since:count]).amin(dim=1)
            distance[some], counted[some] = torch.minimum(distance[some], near), count
        rows.append(row)
        radius.append(distance[row].clone())
        chosen[count] = points[place[row]] - origin
        distance[row] = -1  # below the copies of it, which have 0
    return order[torch.stack(rows).cpu()], torch.stack(radius).sqrt().cpu()


def stale(distance: Tensor, counted: Tensor, row: Tensor, count: int) -> Tensor:
    """Of the longest distances those to bring up to date with a row: as recent as it, or as old."""
    some = distance.topk(min(AT_ONCE, len(distance))).indices
    missed, own = count - counted[some], count - counted[row]
    return torch.cat([row[None], some[(missed > 0) & ((missed > RECENT) == (own > RECENT)) & (some != row)]])


@needs_faiss
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
    mass = uncertain[order].clamp(min=1e-9) if weighted else None
    points = large.Gathered(context.predictions.embedding, order)
    if large.is_large(len(order)):
        clusters = large.k_means(points, n, rng, mass, steps)
    else:
        clusters = k_means(points[torch.arange(len(order))], n, rng, mass, steps)
    rows = medoids(clusters).cpu()
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
    if large.is_large(len(order)):
        norm, between = gradients_between(context.predictions)
        first = there[norm[there].argmax()]
        return picked(context, large.plus_plus(between, len(order), n, rng, first))
    squares, norm = gradient_distances(context.predictions.logits[there], context.predictions.embedding[there])
    first = norm.argmax(dim=0, keepdim=True)
    return picked(context, order[plus_plus(squares, torch.ones_like(norm), n, rng, first).cpu()])


def gradient_distances(logits: Tensor, embedding: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Squared distances [N] of gradients to that of one row [1], as a function; and squared norms [N].

    A gradient is the outer product of a = p - onehot(argmax p) and the embedding h, so that <g_x, g_y> is
    <a_x, a_y> <h_x, h_y>: never is anything of images x classes x dimensions formed.
    """
    residual, hidden = residuals(logits.double()), embedding.double()
    norm = residual.square().sum(dim=1) * hidden.square().sum(dim=1)

    def squares(row: Tensor) -> Tensor:
        product = (residual @ residual[row][0]) * (hidden @ hidden[row][0])
        return (norm + norm[row] - 2 * product).clamp_(min=0)

    return squares, norm


def residuals(logits: Tensor) -> Tensor:
    """p - onehot(argmax p) [N, classes]: the cross-entropy's gradient at the logits for the most likely class."""
    residual = logits.softmax(dim=1)
    likely = residual.argmax(dim=1, keepdim=True)
    return residual.scatter_add(1, likely, -torch.ones_like(likely, dtype=residual.dtype))


def gradients_between(predictions: Predictions) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Squared norms [N] of gradients, and squared distances [R, K] between those of rows [R] and [K], as a function.

    As in `gradient_distances`, in float32, for some rows at a time; copies are at distance 0.
    """

    def squared(logits: Tensor, embedding: Tensor) -> Tensor:
        return residuals(logits).square().sum(dim=1).double() * embedding.square().sum(dim=1)

    _, logits, embedding, _ = predictions
    norm = by_rows(squared, logits, embedding)

    def squares(rows: Tensor, others: Tensor) -> Tensor:
        product = residuals(logits[rows]) @ residuals(logits[others]).T * (embedding[rows] @ embedding[others].T)
        scale = norm[rows, None] + norm[others]
        square = scale - 2 * product
        return square.masked_fill_(square < ROUNDED * scale, 0)

    return norm, squares
