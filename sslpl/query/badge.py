"""BADGE: k-means++ on gradients of the last layer (Ash et al. 2020)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.clustering import large_pools
from sslpl.clustering.k_means import plus_plus
from sslpl.clustering.neighbors import by_rows
from sslpl.query.selection import select_rows
from sslpl.types import Predictions, QueryContext, Selection

ROUNDED = 2.0**-18  # float32 leaves less than this share of their norms of the squared distance of copies


def badge(context: QueryContext, n: int, rng: Generator) -> Selection:
    """k-means++ on the gradients of the last layer for the most likely class (BADGE: Ash et al. 2020).

    As in the published code, the first image is the one with the longest gradient.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    there = order.to(context.device)
    if large_pools.is_large(len(order)):
        norm, between = gradients_between(context.predictions)
        first = there[norm[there].argmax()]
        return select_rows(context, large_pools.rejection_plus_plus(between, len(order), n, rng, first))
    squares, norm = gradient_distances(context.predictions.logits[there], context.predictions.embedding[there])
    first = norm.argmax(dim=0, keepdim=True)
    return select_rows(context, order[plus_plus(squares, torch.ones_like(norm), n, rng, first).cpu()])


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
