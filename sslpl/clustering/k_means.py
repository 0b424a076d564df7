"""k-means on the device of the points: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's iterations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import nearest, squares_to_one

TOLERANCE = 1e-4  # of the mean variance of a dimension: where the centers' squared moves end it (as in scikit-learn)


class Clusters(NamedTuple):
    """A clustering of N points around K centers."""

    centers: Tensor  # [K, D]
    label: Tensor  # [N] int64, in 0..K-1; a center may be no point's nearest
    distance: Tensor  # [N], to that center


def k_means(points: Tensor, clusters: int, rng: Generator, weight: Tensor | None = None, steps: int = 100) -> Clusters:
    """Clusters points [N, D] by k-means++ and at most `steps` of Lloyd's; `weight` [N] above 0 counts points."""
    mean = points.mean(dim=0)  # distances by matrix products are exact to the norms, so these are kept small
    points = points - mean
    mass = torch.ones(len(points)) if weight is None else weight
    mass = mass.to(points.device, torch.float64)
    start = plus_plus(squares_to_one(points), mass, clusters, rng)
    found = lloyd(points, points[start], mass, steps)
    return found._replace(centers=found.centers + mean)


def plus_plus(
    squares: Callable[[Tensor], Tensor], mass: Tensor, n: int, rng: Generator, first: Tensor | None = None
) -> Tensor:
    """Distinct rows [n], each drawn by mass [N] times squared distance to the nearest before it (k-means++).

    `squares` gives the squared distances [N] to one row [1]; `first` [1] is drawn by mass alone unless given. Once
    only copies of chosen points are left, they are drawn by mass. No wait for the device in between.
    """
    draws = torch.rand(n, 1, generator=rng, dtype=torch.float64).to(mass.device)
    free = mass.clone()
    chosen = [drawn(free, draws[0]) if first is None else first]
    closest = squares(chosen[0])
    for draw in draws[1:]:
        free[chosen[-1]] = 0
        weight = closest * free
        chosen.append(drawn(torch.where(weight.sum() > 0, weight, free), draw))
        closest = torch.minimum(closest, squares(chosen[-1]))
    return torch.cat(chosen)


def drawn(weight: Tensor, draw: Tensor) -> Tensor:
    """The row [1] where the cumulated weight [N], not all 0, exceeds the share `draw` [1] of it, in [0, 1)."""
    total = weight.cumsum(dim=0)
    below = torch.nextafter(total[-1:], torch.zeros_like(draw))  # the product may be rounded up to the whole
    return torch.searchsorted(total, torch.minimum(draw * total[-1:], below), right=True)


def lloyd(points: Tensor, centers: Tensor, mass: Tensor, steps: int) -> Clusters:
    """Moves centers [K, D] to the weighted means of their points until they rest; those without points stay."""
    limit = TOLERANCE * float(points.var(dim=0, correction=0).mean())
    for _ in range(steps):
        before = centers
        centers = means(points, nearest(points, centers)[1], mass, centers)
        if float((centers - before).square().sum()) <= limit:
            break
    distance, label = nearest(points, centers)
    return Clusters(centers, label, distance)


def means(points: Tensor, label: Tensor, mass: Tensor, centers: Tensor) -> Tensor:
    """The weighted mean of each cluster's points [K, D]; the center as it was where there are none."""
    mass = mass.to(points.dtype)
    total = mass.new_zeros(len(centers)).index_add_(0, label, mass)[:, None]
    sums = torch.zeros_like(centers).index_add_(0, label, points * mass[:, None])
    return torch.where(total > 0, sums / total, centers)
