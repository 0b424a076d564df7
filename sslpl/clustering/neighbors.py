"""Distances between embeddings in blocks of rows, without a matrix of images x images."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}  # distances held in memory at a time
GRID = 2**26  # cosines of vectors on multiples of 1 / GRID are exact in float64, whatever the order of summation
COPY = 2.0**-40  # in float64 the squared distance of duplicates is below this fraction of their squared norms


def blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Yields slices of `rows` rows, each of about BLOCK entries with this many columns."""
    step = max(1, BLOCK[device.type] // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def by_rows(measure: Callable[..., Tensor], *tables: Tensor) -> Tensor:
    """Applies a row-wise measure to tables [N, ...] in blocks of rows; returns [N]."""
    width = sum(table.shape[1:].numel() for table in tables)
    parts = blocks(len(tables[0]), width, tables[0].device)
    return torch.cat([measure(*(table[rows] for table in tables)) for rows in parts])


def on_grid(embedding: Tensor) -> Tensor:
    """Normalizes to unit vectors [N, D] in float64, with coordinates rounded to multiples of 1 / GRID; zeros stay."""
    return normalize(embedding.double()).mul_(GRID).round_().div_(GRID)


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Computes squared distances [N, K] by a matrix product; the rounding error is relative to the norms."""
    squares = points.square().sum(dim=1, keepdim=True) + centers.square().sum(dim=1)
    return squares.addmm_(points, centers.T, alpha=-2).clamp_(min=0)


def squares_between(points: Tensor, centers: Tensor) -> Tensor:
    """Computes squared distances [N, K] in float64 between points near the origin; duplicates have 0."""
    points, centers = points.double(), centers.double()
    scale = points.square().sum(dim=1, keepdim=True) + centers.square().sum(dim=1)
    square = scale - 2 * (points @ centers.T)
    return square.masked_fill_(square < COPY * scale, 0)


def nearest(points: Tensor, centers: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the distance [N] of each point to its nearest center [K, D], and the index [N] of that center.

    The rounding error is smaller the closer points and centers are to `origin` [D] (default: zero).
    """
    distance, center = points.new_empty(len(points)), torch.empty(len(points), dtype=torch.int64, device=points.device)
    origin = centers.new_zeros(()) if origin is None else origin
    centers = centers - origin
    for rows in blocks(len(points), max(centers.shape), points.device):
        distance[rows], center[rows] = squared_distances(points[rows] - origin, centers).min(dim=1)
    return distance.sqrt_(), center


def mean_neighbor_distance(points: Tensor, neighbors: int) -> Tensor:
    """Computes each point's mean distance [N] to its `neighbors` nearest, in float64; infinite for a single point."""
    count = min(neighbors, len(points) - 1)
    mean = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    points = points.double()
    points = points - points.mean(dim=0)
    for rows in blocks(len(points), len(points), points.device) if count > 0 else ():
        squares = squared_distances(points[rows], points)
        squares.diagonal(rows.start).fill_(torch.inf)
        mean[rows] = squares.topk(count, dim=1, largest=False).values.sqrt().mean(dim=1)
    return mean
