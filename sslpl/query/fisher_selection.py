"""Greedy selection by Fisher information, forward and backward, as in BAIT (Ash et al. 2021).

The Fisher information of an image with embedding h [D] for the weights of a softmax layer is the Kronecker product of
the covariance of its class K = diag(p) - p p' [C, C] and h h' [D, D]. With E = I x h [CD, C], adding an image to the
information M of the selected ones changes its inverse to

    M^-1 - Q (I + K B)^-1 K Q',  Q = M^-1 E,  B = E' M^-1 E  (Woodbury),

and lowers tr(M^-1 F) by tr((I + K B)^-1 K G) with G = E' M^-1 F M^-1 E; a negative K removes the image. B and G [C, C]
of every image are kept up to date: a step costs two products of the embeddings with [D, C^2], where the published code
multiplies [N C, C D] by [C D, C D]. Since K does not change what all classes have in common, it is written in the
C - 1 differences between them, which gives the same traces (ours). K = p (1 - p) [1, 1] is the binary form.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import blocks
from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection


class FisherSelection(NamedTuple):
    """State of a greedy selection among N images with D dimensions and C classes; `update_` changes it in place."""

    points: Tensor  # [N, D], embeddings h
    covariance: Tensor  # [N, C, C], K of the classes, times the weight of a selected image
    fisher: Tensor  # [CD, CD], F of the whole pool
    inverse: Tensor  # [CD, CD], M^-1
    leverage: Tensor  # [N, C, C], B
    gain: Tensor  # [N, C, C], G


def class_covariance(logits: Tensor) -> Tensor:
    """Returns the covariance of the class of each image, from logits [N, classes], in float64.

    It is [N, C, C] for C = classes - 1 orthonormal differences between the one-hot classes (1 if there is one class).
    """
    p, count = logits.double().softmax(dim=1), logits.shape[1]
    common_first = torch.cat([p.new_ones(count, 1), torch.eye(count, dtype=p.dtype, device=p.device)[:, 1:]], dim=1)
    differences: Tensor = torch.linalg.qr(common_first).Q[:, min(1, count - 1) :]
    mean = p @ differences
    return (differences.T * p[:, None]) @ differences - mean[:, :, None] * mean[:, None, :]


def binary_covariance(logits: Tensor) -> Tensor:
    """Returns p (1 - p) [N, 1, 1] of the probability p of the most likely class, in float64."""
    p = logits.double().softmax(dim=1).amax(dim=1)
    return (p * (1 - p))[:, None, None]


def selection_bytes(images: int, dimensions: int, classes: int) -> int:
    """Returns the bytes of memory that `select_by_fisher` takes at its peak, for covariances of this many classes."""
    return 8 * (3 * (classes * dimensions) ** 2 + images * (3 * classes**2 + dimensions))


def fisher_information(points: Tensor, covariance: Tensor) -> Tensor:
    """Returns the sum [CD, CD] of the images' Fisher information, the Kronecker products K x h h'."""
    classes, dimensions = covariance.shape[1], points.shape[1]
    total = points.new_zeros(classes, dimensions, classes, dimensions)
    for rows in blocks(len(points), dimensions, points.device):
        block, weights = points[rows], covariance[rows]
        for c in range(classes):
            for other in range(c + 1):
                total[c, :, other] += block.T @ (weights[:, c, other, None] * block)
    for c in range(classes):
        for other in range(c):
            total[other, :, c] = total[c, :, other]
    return total.view(classes * dimensions, classes * dimensions)


def start_selection(points: Tensor, covariance: Tensor, fisher: Tensor, inverse: Tensor) -> FisherSelection:
    """Returns the state of an empty selection, where M^-1 is `inverse`."""
    classes, dimensions = covariance.shape[1], points.shape[1]
    leverage, gain = torch.empty_like(covariance), torch.empty_like(covariance)
    for c in range(classes):  # both are symmetric
        rows, rest = slice(c * dimensions, (c + 1) * dimensions), slice(c * dimensions, None)
        leverage[:, c, c:] = leverage[:, c:, c] = quadratic_forms(points, inverse[rows, rest])
        gain[:, c, c:] = gain[:, c:, c] = quadratic_forms(points, inverse[rows] @ fisher @ inverse[:, rest])
    return FisherSelection(points, covariance, fisher, inverse, leverage, gain)


def quadratic_forms(points: Tensor, matrices: Tensor) -> Tensor:
    """Returns h' A_k h [N, K] of the points h [N, D] for matrices A_1, ..., A_K side by side [D, KD]."""
    dimensions = points.shape[1]
    result = points.new_empty(len(points), matrices.shape[1] // dimensions)
    for rows in blocks(len(points), matrices.shape[1], points.device):
        block = points[rows]
        result[rows] = ((block @ matrices).view(len(block), -1, dimensions) * block[:, None]).sum(dim=2)
    return result


def inner_inverse(covariance: Tensor, leverage: Tensor) -> Tensor:
    """Returns (I + K B)^-1 K [N, C, C]."""
    if covariance.shape[-1] == 1:
        return covariance / (1 + covariance * leverage)
    system = covariance @ leverage
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    solution: Tensor = torch.linalg.solve(system, covariance)
    return solution


def trace_decrease(state: FisherSelection, sign: int) -> Tensor:
    """Returns by how much adding (sign 1) or removing (sign -1) each image lowers tr(M^-1 F) [N]."""
    decrease = state.points.new_empty(len(state.points))
    for rows in blocks(len(decrease), 4 * state.gain[0].numel(), decrease.device):
        inner = inner_inverse(sign * state.covariance[rows], state.leverage[rows])
        decrease[rows] = (inner * state.gain[rows]).sum(dim=(1, 2))  # both are symmetric
    return decrease


def update_(state: FisherSelection, row: Tensor, sign: int) -> None:
    """Adds (sign 1) or removes (sign -1) the image at `row` [1], in place: M^-1 may take most of the memory."""
    points, covariance, fisher, inverse, leverage, gain = state
    classes, dimensions = covariance.shape[1], points.shape[1]
    inner = inner_inverse(sign * covariance[row], leverage[row])[0]
    q = (inverse.view(-1, classes, dimensions) @ points[row][0]).contiguous()  # [CD, C]
    scaled = q @ inner
    fisher_q = fisher @ q
    w = inverse @ fisher_q - 0.5 * scaled @ (q.T @ fisher_q)
    inverse.addmm_(scaled, q.T, alpha=-1)
    factors = torch.stack([q, w]).view(2, classes, dimensions, classes).permute(2, 0, 1, 3).reshape(dimensions, -1)
    for rows in blocks(len(points), 4 * covariance[0].numel(), points.device):
        on_q, on_w = (points[rows] @ factors).view(-1, 2, classes, classes).unbind(dim=1)
        on_scaled = on_q @ inner
        leverage[rows] -= on_scaled @ on_q.mT
        change = on_scaled @ on_w.mT
        gain[rows] -= change + change.mT


def forward_greedy(state: FisherSelection, n: int) -> Tensor:
    """Adds n images, each the one that lowers tr(M^-1 F) the most (ties: the first); returns their rows [n]."""
    rows: list[Tensor] = []
    added = torch.zeros(len(state.points), dtype=torch.bool, device=state.points.device)
    for _ in range(n):
        rows.append(trace_decrease(state, 1).masked_fill(added, -torch.inf).argmax(dim=0, keepdim=True))
        added[rows[-1]] = True
        update_(state, rows[-1], 1)
    return torch.cat(rows)


def backward_greedy(state: FisherSelection, rows: Tensor, n: int) -> Tensor:
    """Returns the n added rows that remain after removing, one by one, the row that raises tr(M^-1 F) the least."""
    fisher, inverse = state.fisher, state.inverse
    state = FisherSelection(
        state.points[rows], state.covariance[rows], fisher, inverse, state.leverage[rows], state.gain[rows]
    )
    removed = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for _ in range(len(rows) - n):
        row = trace_decrease(state, -1).masked_fill(removed, -torch.inf).argmax(dim=0, keepdim=True)
        removed[row] = True
        update_(state, row, -1)
    return rows[~removed]


def select_by_fisher(
    context: QueryContext,
    n: int,
    rng: Generator,
    covariance: Callable[[Tensor], Tensor],
    regularization: float,
    oversample: int,
) -> Selection:
    """Selects n images by BAIT, forward to `oversample` x n and back to n; `covariance` takes the logits.

    F is the mean Fisher information over all images, M = `regularization` x I + (the sum over the labeled images + n x
    the sum over the selected ones) / (labeled + n), weighted as in the published code. Ties are broken at random.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)  # so that argmax breaks ties at random
    shuffled = order.to(context.device)
    points, weights = context.predictions.embedding[shuffled].double(), covariance(context.predictions.logits[shuffled])
    known, known_weights = (
        context.labeled_predictions.embedding.double(),
        covariance(context.labeled_predictions.logits),
    )
    total = len(known) + n
    information = fisher_information(known, known_weights)
    fisher = fisher_information(points, weights).add_(information).div_(len(points) + len(known))
    information.div_(total).diagonal().add_(regularization)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(information, out=information))
    del information  # as large as the other two
    state = start_selection(points, weights.mul_(n / total), fisher, inverse)
    rows = backward_greedy(state, forward_greedy(state, min(oversample * n, len(points))), n)
    return select_rows(context, order[rows.cpu()])
