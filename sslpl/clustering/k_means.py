"""k-means on the device of the points: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's iterations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import nearest, squares_between

REFRESH = 64  # most new rows of k-means++, or consecutive rejections, between updates of all distances
PER_ROW = 1024  # a pool of fewer rows is updated for each new row: there an update costs less than a rejection
ROWS = {"cpu": 1 << 12, "cuda": 1 << 16}  # whose distances are updated at a time
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
    initial = plus_plus(lambda rows, others: squares_between(points[rows], points[others]), mass, clusters, rng)
    result = lloyd(points, points[initial], mass, steps)
    return result._replace(centers=result.centers + mean)


def plus_plus(
    squares: Callable[[Tensor, Tensor], Tensor], mass: Tensor, n: int, rng: Generator, first: Tensor | None = None
) -> Tensor:
    """Draws distinct rows [n] in proportion to mass [N] x squared distance to the nearest earlier row (k-means++).

    `squares` returns the squared distances [R, K] between rows [R] and [K]; `first` [1] is drawn by mass unless given.
    Once only duplicates of drawn rows remain, they are drawn by mass. A row is proposed by an outdated distance, an
    upper bound, and accepted with probability current / outdated distance: this is exact, and all distances are
    updated only occasionally, for many new rows at a time.
    """
    chosen = (
        draw_row(mass, torch.rand(1, generator=rng, dtype=torch.float64).to(mass.device)) if first is None else first
    )
    bound = mass * nearest_squares(squares, len(mass), chosen)
    bound[chosen] = 0
    counted, rejected, interval = 1, 0, min(REFRESH, max(1, len(mass) // PER_ROW))
    while len(chosen) < n:
        pending = chosen[counted:]
        if len(pending) >= interval or rejected >= interval:
            bound = torch.minimum(bound, mass * nearest_squares(squares, len(mass), pending))
            counted, rejected = len(chosen), 0
            continue
        if not bool(bound.sum() > 0):
            return torch.cat([chosen, others_by_mass(mass, chosen, n - len(chosen), rng)])
        draw = torch.rand(2, generator=rng, dtype=torch.float64).to(mass.device)
        row = draw_row(bound, draw[:1])
        current = torch.cat([bound[row], mass[row] * squares(row, pending)[0]]).min()
        if bool(draw[1] * bound[row] < current):
            chosen, current, rejected = torch.cat([chosen, row]), torch.zeros_like(current), -1
        bound[row], rejected = current, rejected + 1
    return chosen


def nearest_squares(squares: Callable[[Tensor, Tensor], Tensor], count: int, others: Tensor) -> Tensor:
    """Returns the squared distance [N] of each of `count` rows to the nearest of other rows."""
    rows = torch.split(torch.arange(count, device=others.device), ROWS[others.device.type])
    return torch.cat([squares(part, others).amin(dim=1).double() for part in rows])


def others_by_mass(mass: Tensor, chosen: Tensor, count: int, rng: Generator) -> Tensor:
    """Draws distinct rows [count] by mass among those that are not chosen (Efraimidis and Spirakis 2006)."""
    uniform = torch.rand(len(mass), generator=rng, dtype=torch.float64).to(mass.device)
    key = (uniform.log() / mass).index_fill_(0, chosen, -torch.inf)
    return key.topk(count).indices


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
