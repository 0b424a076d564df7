"""BADGE: k-means++ on gradients of the last layer (Ash et al. 2020)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sslpl.clustering.k_means import plus_plus
from sslpl.clustering.neighbors import by_rows
from sslpl.query.selection import select_rows
from sslpl.types import Predictions, QueryContext, Selection

COPY = 2.0**-18  # in float32 the squared distance of duplicates is below this fraction of their squared norms


def badge(context: QueryContext, n: int, rng: Generator) -> Selection:
    """Selects by k-means++ on the last layer's gradients for the most likely class (BADGE: Ash et al. 2020).

    As in the published code, the first image is the one with the longest gradient.
    """
    norm, squares = gradient_distances(context.predictions)
    order = torch.randperm(len(norm), generator=rng).to(norm.device)  # decides between equal gradients
    first = order[norm[order].argmax(dim=0, keepdim=True)]
    return select_rows(context, plus_plus(squares, torch.ones_like(norm), n, rng, first).cpu())


def residuals(logits: Tensor) -> Tensor:
    """Returns p - onehot(argmax p) [N, classes], the cross-entropy gradient of the logits for the most likely class."""
    residual = logits.softmax(dim=1)
    likely = residual.argmax(dim=1, keepdim=True)
    return residual.scatter_add(1, likely, -torch.ones_like(likely, dtype=residual.dtype))


def gradient_distances(predictions: Predictions) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Returns the squared gradient norms [N] and a function from rows [R] and [K] to squared distances [R, K].

    A gradient is the outer product of a = p - onehot(argmax p) and the embedding h, so that <g_x, g_y> is
    <a_x, a_y> <h_x, h_y>: no tensor of images x classes x dimensions is formed. Duplicates have distance 0.
    """

    def squared_norms(logits: Tensor, embedding: Tensor) -> Tensor:
        return residuals(logits).square().sum(dim=1).double() * embedding.square().sum(dim=1)

    _, logits, embedding, _ = predictions
    norm = by_rows(squared_norms, logits, embedding)

    def squares(rows: Tensor, others: Tensor) -> Tensor:
        product = residuals(logits[rows]) @ residuals(logits[others]).T * (embedding[rows] @ embedding[others].T)
        scale = norm[rows, None] + norm[others]
        square = scale - 2 * product
        return square.masked_fill_(square < COPY * scale, 0)

    return norm, squares
