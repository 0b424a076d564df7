"""Ranking losses: they train predicted losses to order pairs of images as the true losses do.

With weights, the loss of a pair is multiplied by the weights of both images and still averaged over all pairs (ours).
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sslpl.types import Positive


def pair_gaps(values: Tensor) -> Tensor:
    """Returns v_i - v_{n-1-i} for the pairs of n values; the last value of an odd number is dropped first."""
    even = values[: len(values) // 2 * 2]
    return (even - even.flip(0))[: len(even) // 2]


def pair_products(values: Tensor) -> Tensor:
    """Returns v_i v_{n-1-i} for the pairs of `pair_gaps`."""
    even = values[: len(values) // 2 * 2]
    return (even * even.flip(0))[: len(even) // 2]


def bce_ranking_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns the mean binary cross-entropy of sigmoid(p_i - p_j) against 1[l_i > l_j] (SSLPM); 0 without pairs."""
    gap = pair_gaps(predicted)
    first_is_higher = (pair_gaps(target.detach()) > 0).to(gap.dtype)
    if len(gap) == 0:
        return predicted.sum() * 0
    return binary_cross_entropy_with_logits(
        gap, first_is_higher, weight=None if weight is None else pair_products(weight)
    )


def margin_ranking_loss(
    predicted: Tensor, target: Tensor, margin: Positive = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Returns mean max(0, margin - s (p_i - p_j)), s = 1 if l_i > l_j else -1 (Learning Loss); 0 without pairs."""
    gap = pair_gaps(predicted)
    sign = torch.where(pair_gaps(target.detach()) > 0, 1.0, -1.0)
    if len(gap) == 0:
        return predicted.sum() * 0
    hinge = torch.relu(margin - sign * gap)
    return (hinge if weight is None else pair_products(weight) * hinge).mean()
