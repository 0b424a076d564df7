"""k-means on the device of the points: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's iterations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import nearest, squares_to_one

TOLERANCE = 1e-4  # bounds the centers' squared shifts, as a share of the mean variance (as in scikit-learn)


class Clusters(NamedTuple):
    """A clustering of N points around K centers."""

    centers: Tensor  # [K, D]
    assignment: Tensor  # [N] int64, the nearest center, in 0..K-1; some centers may have no points
    distance: Tensor  # [N], to that center


def k_means(points: Tensor, clusters: int, rng: Generator, weight: Tensor | None = None, steps: int = 100) -> Clusters:
    """Clusters points [N, D] by k-means++ and at most `steps` Lloyd iterations, weighted by `weight` [N] > 0."""
    mean = points.mean(dim=0)  # centered, since the rounding of distances by matrix products grows with the norms
    points = points - mean
    mass = torch.ones(len(points)) if weight is None else weight
    mass = mass.to(points.device, torch.float64)
    initial = plus_plus(squares_to_one(points), mass, clusters, rng)
    result = lloyd(points, points[initial], mass, steps)
    return result._replace(centers=result.centers + mean)


def plus_plus(
    squares: Callable[[Tensor], Tensor], mass: Tensor, n: int, rng: Generator, first: Tensor | None = None
) -> Tensor:
    """Draws distinct rows [n] in proportion to mass [N] x squared distance to the nearest earlier row (k-means++).

    `squares` returns the squared distances [N] to a row [1]; `first` [1] is drawn by mass unless given. Once only
    duplicates of chosen points remain, they are drawn by mass. There is no synchronization with the device.
    """
    draws = torch.rand(n, 1, generator=rng, dtype=torch.float64).to(mass.device)
    available = mass.clone()
    chosen = [draw_row(available, draws[0]) if first is None else first]
    closest = squares(chosen[0])
    for draw in draws[1:]:
        available[chosen[-1]] = 0
        weight = closest * available
        chosen.append(draw_row(torch.where(weight.sum() > 0, weight, available), draw))
        closest = torch.minimum(closest, squares(chosen[-1]))
    return torch.cat(chosen)


def draw_row(weight: Tensor, draw: Tensor) -> Tensor:
    """Returns the row [1] at quantile `draw` [1], in [0, 1), of the weights [N], which are not all 0."""
    total = weight.cumsum(dim=0)
    below = torch.nextafter(total[-1:], torch.zeros_like(draw))  # the product may be rounded up to the total
    return torch.searchsorted(total, torch.minimum(draw * total[-1:], below), right=True)


def lloyd(points: Tensor, centers: Tensor, mass: Tensor, steps: int) -> Clusters:
    """Moves centers [K, D] to the weighted means of their points until convergence; empty ones stay."""
    limit = TOLERANCE * float(points.var(dim=0, correction=0).mean())
    for _ in range(steps):
        previous = centers
        centers = means(points, nearest(points, centers)[1], mass, centers)
        if float((centers - previous).square().sum()) <= limit:
            break
    distance, assignment = nearest(points, centers)
    return Clusters(centers, assignment, distance)


def means(points: Tensor, assignment: Tensor, mass: Tensor, centers: Tensor) -> Tensor:
    """Computes the weighted mean [K, D] of each cluster's points; a center without points is unchanged."""
    mass = mass.to(points.dtype)
    total = mass.new_zeros(len(centers)).index_add_(0, assignment, mass)[:, None]
    sums = torch.zeros_like(centers).index_add_(0, assignment, points * mass[:, None])
    return torch.where(total > 0, sums / total, centers)
