"""Distances between embeddings in blocks of rows: nothing here holds a matrix of images x images."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}  # distances held at a time
COPY = 2.0**-40  # what rounding leaves of the squared distance of copies is below this share of their norms


def blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of `rows` rows, each with about BLOCK entries of so many columns."""
    step = max(1, BLOCK[device.type] // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def by_rows(measure: Callable[..., Tensor], *tables: Tensor) -> Tensor:
    """A measure [N] of the rows of tables [N, ...], some rows at a time."""
    width = sum(table.shape[1:].numel() for table in tables)
    parts = blocks(len(tables[0]), width, tables[0].device)
    return torch.cat([measure(*(table[rows] for table in tables)) for rows in parts])


def squares_to_one(points: Tensor) -> Callable[[Tensor], Tensor]:
    """Squared distances [N] of points [N, D] to the one at a row [1], as a function, in float64; 0 to its copies."""
    points = points.double()
    points = points - points.mean(dim=0)
    norm = points.square().sum(dim=1)

    def squares(row: Tensor) -> Tensor:
        scale = norm + norm[row]
        square = scale - 2 * (points @ points[row][0])
        return square.masked_fill_(square < COPY * scale, 0)

    return squares


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Squared distances [N, K] by one matrix product, rounded to about the points' precision times their norms."""
    squares = points.square().sum(dim=1, keepdim=True) + centers.square().sum(dim=1)
    return squares.addmm_(points, centers.T, alpha=-2).clamp_(min=0)


def squares_between(points: Tensor, centers: Tensor) -> Tensor:
    """Squared distances [N, K] of a few points in float64, given in that; 0 between copies."""
    scale = points.square().sum(dim=1, keepdim=True) + centers.square().sum(dim=1)
    square = scale - 2 * (points @ centers.T)
    return square.masked_fill_(square < COPY * scale, 0)


def nearest(points: Tensor, centers: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance [N] of each point to its nearest center [K, D], and which that is [N].

    They are rounded the less, the nearer both lie to the `origin` [D] (the coordinates' unless given).
    """
    distance, center = points.new_empty(len(points)), torch.empty(len(points), dtype=torch.int64, device=points.device)
    origin = centers.new_zeros(()) if origin is None else origin
    centers = centers - origin
    for rows in blocks(len(points), max(centers.shape), points.device):
        distance[rows], center[rows] = squared_distances(points[rows] - origin, centers).min(dim=1)
    return distance.sqrt_(), center


def mean_neighbor_distance(points: Tensor, neighbors: int) -> Tensor:
    """Mean distance [N] in float64 of each point to its `neighbors` nearest others; infinite where there are none."""
    count = min(neighbors, len(points) - 1)
    mean = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    points = points.double()
    points = points - points.mean(dim=0)
    for rows in blocks(len(points), len(points), points.device) if count > 0 else ():
        squares = squared_distances(points[rows], points)
        squares.diagonal(rows.start).fill_(torch.inf)
        mean[rows] = squares.topk(count, dim=1, largest=False).values.sqrt().mean(dim=1)
    return mean
