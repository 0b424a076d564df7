"""BAIT: matches the Fisher information of the labeled images to that of the whole pool (Ash et al. 2021)."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_subset
from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, Positive, Predictions, QueryContext, Selection


class FisherSelection(NamedTuple):
    """State of a greedy selection; adding or removing an image costs two N x D matrix products."""

    vectors: Tensor  # [N, D], v
    fisher: Tensor  # [D, D], F of the whole pool
    inverse: Tensor  # [D, D], M^-1 of the labeled and selected images
    leverage: Tensor  # [N], v M^-1 v
    gain: Tensor  # [N], v M^-1 F M^-1 v


@needs_subset
def bait(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    regularization: Positive = 1.0,
    oversample: Count = 2,
    subset: Count | None = None,
) -> Selection:
    """Minimizes tr(M^-1 F) greedily, forward to `oversample` x n images and back to n (BAIT, in its binary form).

    F is the mean Fisher information v v' of all images, M = `regularization` x I + (the sum of v v' over the labeled
    + n x the sum over the selected) / (labeled + n), weighted as in the published code (Ash et al. 2021), which uses a
    `regularization` of 0.01 on CIFAR and of 1 elsewhere. The Fisher information is that of BAIT (Binary) of Huseljic et
    al. 2024: a last layer that separates the most likely class, of probability p, from the others, so that
    v = sqrt(p (1 - p)) h for the embedding h. It has D x D entries where the softmax has (classes x D)^2. Each step,
    forward or back, costs O(images x D + D^2) in float64; memory is at most five float64 copies of the embeddings.
    With `subset` (ours), a random subset of that many unlabeled images replaces the pool.
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)  # so that argmax breaks ties at random
    vectors = fisher_vectors(context.predictions)[order.to(context.device)]
    labeled = fisher_vectors(context.labeled_predictions)
    total = len(labeled) + n
    fisher = (vectors.T @ vectors + labeled.T @ labeled) / (len(vectors) + len(labeled))
    information = labeled.T @ labeled / total
    information.diagonal().add_(regularization)
    state = start_selection(vectors * (n / total) ** 0.5, fisher, torch.linalg.inv(information))
    rows, state = forward_greedy(state, min(oversample * n, len(vectors)))
    return select_rows(context, order[rows[backward_greedy(state, rows, n)].cpu()])


def fisher_vectors(predictions: Predictions) -> Tensor:
    """Returns the factor v [N, D] of each image's Fisher information v v', in float64."""
    p = predictions.logits.double().softmax(dim=1).amax(dim=1, keepdim=True)
    return (p * (1 - p)).sqrt() * predictions.embedding.double()


def start_selection(vectors: Tensor, fisher: Tensor, inverse: Tensor) -> FisherSelection:
    """Returns the state of an empty selection from vectors [N, D]."""
    projected = vectors @ inverse
    leverage, gain = (projected * vectors).sum(dim=1), (projected @ fisher * projected).sum(dim=1)
    return FisherSelection(vectors, fisher, inverse, leverage, gain)


def update_selection(state: FisherSelection, row: Tensor, sign: int) -> FisherSelection:
    """Adds (sign 1) or removes (sign -1) the image at `row` [1], by the Sherman-Morrison formula."""
    vectors, fisher, inverse, leverage, gain = state
    scale = 1 + sign * leverage[row]
    u = inverse @ vectors[row][0]
    w = inverse @ (fisher @ u)
    on_u, on_w = (vectors @ torch.stack([u, w], dim=1)).unbind(dim=1)
    gain = gain - 2 * sign * on_u * on_w / scale + (u @ fisher @ u) * (on_u / scale).square()
    leverage = leverage - sign * on_u.square() / scale
    return FisherSelection(vectors, fisher, inverse - sign * torch.outer(u, u / scale), leverage, gain)


def forward_greedy(state: FisherSelection, n: int) -> tuple[Tensor, FisherSelection]:
    """Adds n images, each the one that lowers tr(M^-1 F) the most, by gain / (1 + leverage)."""
    rows: list[Tensor] = []
    added = torch.zeros_like(state.gain, dtype=torch.bool)
    for _ in range(n):
        decrease = state.gain / (1 + state.leverage)
        rows.append(decrease.masked_fill(added, -torch.inf).argmax(dim=0, keepdim=True))
        added[rows[-1]] = True
        state = update_selection(state, rows[-1], 1)
    return torch.cat(rows), state


def backward_greedy(state: FisherSelection, rows: Tensor, n: int) -> Tensor:
    """Returns the n added rows that remain after removing, one by one, the row that raises tr(M^-1 F) the least."""
    state = state._replace(vectors=state.vectors[rows], leverage=state.leverage[rows], gain=state.gain[rows])
    removed = torch.zeros_like(state.gain, dtype=torch.bool)
    for _ in range(len(rows) - n):
        increase = state.gain / (1 - state.leverage)
        row = increase.masked_fill(removed, torch.inf).argmin(dim=0, keepdim=True)
        removed[row] = True
        state = update_selection(state, row, -1)
    return (~removed).nonzero()[:, 0]
