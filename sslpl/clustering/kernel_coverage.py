"""Greedy coverage by a Gaussian kernel (Bae et al. 2024, 2025), without a matrix of images x images.

A point is covered as well as its most similar center covers it. The gains of all candidates are summed once, in blocks
of pairs. A new center changes them only through the points that it covers better than before, which soon are few: with
many centers, all updates together cost about as much as the first sums. Memory is linear in the number of points.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sslpl.clustering.neighbors import blocks

ROUNDING = 2.0**-44  # a gain below this share of the total weight is 0 up to rounding


class KernelPoints(NamedTuple):
    """Points in float64 with their squared norms."""

    vector: Tensor  # [N, D]
    square: Tensor  # [N]

    def at(self, rows: Tensor | slice) -> "KernelPoints":
        """Returns the points at these rows."""
        return KernelPoints(self.vector[rows], self.square[rows])


def kernel_points(vector: Tensor) -> KernelPoints:
    """Returns vectors [N, D] with their squared norms."""
    return KernelPoints(vector, vector.square().sum(dim=1))


def similarity(points: KernelPoints, centers: KernelPoints, radius: float) -> Tensor:
    """Computes exp(-(distance / radius)^2) [N, K]."""
    squares = torch.addmm(centers.square, points.vector, centers.vector.T, alpha=-2).add_(points.square[:, None])
    return squares.clamp_(min=0).mul_(-1 / radius**2).exp_()


def coverage(points: KernelPoints, centers: KernelPoints, radius: float) -> Tensor:
    """Returns the similarity [N] of each point to its most similar center; 0 without centers."""
    highest, count = torch.zeros_like(points.square), len(centers.square)
    for rows in blocks(len(highest), count, highest.device) if count else ():
        highest[rows] = similarity(points.at(rows), centers, radius).amax(dim=1)
    return highest


def coverage_gain(
    candidates: KernelPoints, points: KernelPoints, low: Tensor, high: Tensor, weight: Tensor, radius: float
) -> Tensor:
    """Sums, for each candidate [K], weight x how far it raises the coverage of points [N] between `low` and `high`."""
    gain, count = torch.zeros_like(candidates.square), len(points.square)
    for rows in blocks(len(gain), count, gain.device) if count else ():
        raised = similarity(candidates.at(rows), points, radius).clamp_(min=low, max=high)
        gain[rows] = raised.sub_(low).mul_(weight).sum(dim=1)
    return gain


def greedy_kernel_coverage(
    points: KernelPoints, covered: Tensor, weight: Tensor, radius: float, n: int
) -> tuple[Tensor, Tensor]:
    """Returns rows [n] of points that greedily raise the weighted coverage the most, and their gains [n].

    `covered` [N] is the coverage before the first. Of equal gains the first is taken.
    """
    selected, rows, gains = torch.zeros_like(covered, dtype=torch.bool), [], []
    gain = coverage_gain(points, points, covered, torch.ones_like(covered), weight, radius)
    rounding = ROUNDING * weight.sum()
    for _ in range(n):
        gain = gain.masked_fill(gain < rounding, 0)
        row = gain.masked_fill(selected, -1).argmax(dim=0, keepdim=True)
        rows.append(row)
        gains.append(gain[row])
        selected[row] = True
        similar = similarity(points, points.at(row), radius)[:, 0]
        closer = (similar > covered).nonzero()[:, 0]
        low, high = covered[closer], similar[closer]
        gain = gain - coverage_gain(points, points.at(closer), low, high, weight[closer], radius)
        covered = torch.maximum(covered, similar)
    return torch.cat(rows), torch.cat(gains)
