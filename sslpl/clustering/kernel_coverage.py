"""Greedy coverage by a Gaussian kernel (Bae et al. 2024, 2025), without a matrix of images x images.

A point is covered as well as its most similar center covers it. Each center lowers what another one would still add, so
that earlier gains are upper bounds, and only those that may still be the highest are computed again. The first bounds
take one pass over all pairs, in blocks; memory is linear in the number of points.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sslpl.clustering.lazy_greedy import row_of_highest_gain
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
    candidates: KernelPoints, points: KernelPoints, covered: Tensor, weight: Tensor, radius: float
) -> Tensor:
    """Sums, for each candidate [K], weight x how far it raises the coverage of points [N]."""
    gain, count = torch.zeros_like(candidates.square), len(points.square)
    for rows in blocks(len(gain), count, gain.device) if count else ():
        raised = similarity(candidates.at(rows), points, radius).sub_(covered).clamp_(min=0)
        gain[rows] = raised.mul_(weight).sum(dim=1)
    return gain


def initial_gains(points: KernelPoints, covered: Tensor, weight: Tensor, radius: float) -> Tensor:
    """Returns the coverage gain [N] of each point up to rounding; the similarity of each pair is computed once."""
    gain, count = torch.zeros_like(covered), len(covered)
    for rows in blocks(count, count, gain.device):
        similar = similarity(points.at(rows), points.at(slice(rows.start, None)), radius)
        of_later = (similar[:, rows.stop - rows.start :] - covered[rows, None]).clamp_(min=0)
        gain[rows.stop :] += weight[rows] @ of_later
        gain[rows] += similar.sub_(covered[rows.start :]).clamp_(min=0) @ weight[rows.start :]
    return gain


def greedy_kernel_coverage(
    points: KernelPoints, covered: Tensor, weight: Tensor, radius: float, n: int
) -> tuple[Tensor, Tensor]:
    """Returns rows [n] of points that greedily raise the weighted coverage the most, and their gains [n].

    `covered` [N] is the coverage before the first. Of equal gains the first is taken.
    """
    rounding, rows, gains = ROUNDING * weight.sum(), [], []

    def gain(candidates: Tensor) -> Tensor:
        raised = coverage_gain(points.at(candidates), points, covered, weight, radius)
        return raised.masked_fill_(raised < rounding, 0)

    bound = initial_gains(points, covered, weight, radius) + rounding  # above the gain in spite of rounding
    for _ in range(n):
        row = row_of_highest_gain(bound, gain)
        rows.append(row)
        gains.append(bound[row])
        bound[row] = -1  # is selected once
        covered = torch.maximum(covered, similarity(points, points.at(row), radius)[:, 0])
    return torch.cat(rows), torch.cat(gains)
