"""BAIT: batches that make the Fisher information of the labeled images fit that of the pool (Ash et al. 2021)."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_subset
from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, Positive, Predictions, QueryContext, Selection


class FisherSelection(NamedTuple):
    """What a selection keeps up to date: adding or removing an image costs two products of N x D."""

    vectors: Tensor  # [N, D], v
    fisher: Tensor  # [D, D], F of the whole pool
    inverse: Tensor  # [D, D], M^-1 of what is labeled and chosen
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
    """Minimizes tr(M^-1 F), forward to `oversample` x n images and back to n (BAIT, in its binary form).

    F is the mean Fisher information v v' of all images, M = `regularization` x I + (the sum of v v' over the labeled
    + n x the sum over the chosen) / (labeled + n), weighted as in the published code (Ash et al. 2021), which uses a
    `regularization` of 0.01 on CIFAR (as `experiment=bait_cifar10` does) and of 1 elsewhere. The Fisher information
    is that of BAIT (Binary) of Huseljic et al. 2024: a last layer that tells the most likely class, of probability p,
    from the others, so that v = sqrt(p (1 - p)) h for the embedding h. It has D x D entries where the softmax has
    (classes x D)^2. Each step, forward or back, costs O(images x D + D^2) in float64; memory is at most five float64
    copies of the embeddings, of a random `subset` of the images if one is asked for (ours), which then stands for the
    pool.
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)  # the first of equals is then a random one
    vectors = fisher_vectors(context.predictions)[order.to(context.device)]
    seen = fisher_vectors(context.labeled_predictions)
    total = len(seen) + n
    fisher = (vectors.T @ vectors + seen.T @ seen) / (len(vectors) + len(seen))
    start = seen.T @ seen / total
    start.diagonal().add_(regularization)
    sweep = start_selection(vectors * (n / total) ** 0.5, fisher, torch.linalg.inv(start))
    rows, sweep = forward_greedy(sweep, min(oversample * n, len(vectors)))
    return select_rows(context, order[rows[backward_greedy(sweep, rows, n)].cpu()])


def fisher_vectors(predictions: Predictions) -> Tensor:
    """The factor v [N, D] of each image's Fisher information v v', in float64."""
    p = predictions.logits.double().softmax(dim=1).amax(dim=1, keepdim=True)
    return (p * (1 - p)).sqrt() * predictions.embedding.double()


def start_selection(vectors: Tensor, fisher: Tensor, inverse: Tensor) -> FisherSelection:
    """The start of a selection among vectors [N, D]."""
    near = vectors @ inverse
    return FisherSelection(vectors, fisher, inverse, (near * vectors).sum(dim=1), (near @ fisher * near).sum(dim=1))


def update_selection(sweep: FisherSelection, row: Tensor, sign: int) -> FisherSelection:
    """Adds (sign 1) or removes (sign -1) the image at `row` [1], by the formula of Sherman and Morrison."""
    vectors, fisher, inverse, leverage, gain = sweep
    scale = 1 + sign * leverage[row]
    u = inverse @ vectors[row][0]
    w = inverse @ (fisher @ u)
    on_u, on_w = (vectors @ torch.stack([u, w], dim=1)).unbind(dim=1)
    gain = gain - 2 * sign * on_u * on_w / scale + (u @ fisher @ u) * (on_u / scale).square()
    leverage = leverage - sign * on_u.square() / scale
    return FisherSelection(vectors, fisher, inverse - sign * torch.outer(u, u / scale), leverage, gain)


def forward_greedy(sweep: FisherSelection, n: int) -> tuple[Tensor, FisherSelection]:
    """Adds n images, each time the one that lowers tr(M^-1 F) the most: by gain / (1 + leverage)."""
    rows: list[Tensor] = []
    added = torch.zeros_like(sweep.gain, dtype=torch.bool)
    for _ in range(n):
        drop = sweep.gain / (1 + sweep.leverage)
        rows.append(drop.masked_fill(added, -torch.inf).argmax(dim=0, keepdim=True))
        added[rows[-1]] = True
        sweep = update_selection(sweep, rows[-1], 1)
    return torch.cat(rows), sweep


def backward_greedy(sweep: FisherSelection, rows: Tensor, n: int) -> Tensor:
    """Which n of the added rows stay, removing each time the one that raises tr(M^-1 F) the least."""
    sweep = sweep._replace(vectors=sweep.vectors[rows], leverage=sweep.leverage[rows], gain=sweep.gain[rows])
    removed = torch.zeros_like(sweep.gain, dtype=torch.bool)
    for _ in range(len(rows) - n):
        rise = sweep.gain / (1 - sweep.leverage)
        row = rise.masked_fill(removed, torch.inf).argmin(dim=0, keepdim=True)
        removed[row] = True
        sweep = update_selection(sweep, row, -1)
    return (~removed).nonzero()[:, 0]
