"""Greedy k-center selection: points that leave none far from a center."""

import torch
from torch import Generator, Tensor

BLOCK = 4096  # centers, and points, whose distances are held at a time


def k_center_greedy(centers: Tensor, points: Tensor, n: int, rng: Generator) -> Tensor:
    """Rows [n] of `points` [U, d]: again and again the one farthest from its nearest center, which becomes a center.

    Distances are Euclidean, `centers` is [L, d]; ties are broken by the generator, memory is linear in U (Sener and
    Savarese 2018, algorithm 1).
    """
    order = torch.randperm(len(points), generator=rng).to(points.device)
    points = points[order]
    gap = nearest_distance(points, centers)
    chosen = []
    for _ in range(n):
        farthest = gap.argmax(dim=0, keepdim=True)
        chosen.append(farthest)
        exact = torch.cdist(points, points[farthest], compute_mode="donot_use_mm_for_euclid_dist")
        gap = torch.minimum(gap, exact[:, 0]).index_fill_(0, farthest, -torch.inf)
    return order[torch.cat(chosen)].cpu()


def nearest_distance(points: Tensor, centers: Tensor) -> Tensor:
    """The distance [U] of each point to its nearest center; infinite without centers."""
    gap = torch.full_like(points[:, 0], torch.inf)
    origin = points[:1]  # near zero, products of float32 lose less of a distance
    for start in range(0, len(points), BLOCK):
        for some in torch.split(centers, BLOCK) if len(centers) else ():
            part = gap[start : start + BLOCK]
            distance = torch.cdist(points[start : start + BLOCK] - origin, some - origin)
            torch.minimum(part, distance.amin(dim=1), out=part)
    return gap
