"""Exact complete-linkage clustering in rounds of simultaneous merges, the same code for CPU and CUDA.

Complete linkage is reducible: merging two clusters never brings them closer to a third. Reciprocal nearest neighbors
may therefore merge in any order (Bruynooghe 1978, Murtagh 1983); merging all such pairs of a round simultaneously is
ours. Squared distances are stored in float32, yet the result is that of float64: rounding preserves the order of
maxima, so that only distances that differ by less than the rounding error are recomputed in float64.
"""

import torch
from torch import Tensor

from sslpl.clustering.linkage_rounds import CHUNK, MATRIX_PARTS, ROWS_PER_BLOCK, Rounds, least
from sslpl.memory import free_memory


@torch.no_grad()
def complete_linkage(points: Tensor, clusters: int) -> Tensor:
    """Clusters `points` [n, d] by complete linkage in Euclidean space; returns labels [n], int64 in 0..clusters-1.

    Each of the n - clusters merges joins the two clusters of smallest maximum distance. Duplicate points merge first;
    other ties are broken by a fixed pseudo-random order of pairs of points' lexicographic ranks. Labels are numbered in
    order of appearance. Raises ValueError for `clusters` outside 1..n and for non-finite coordinates, MemoryError if
    `complete_linkage_bytes` are not free.
    """
    if points.ndim != 2 or not 1 <= clusters <= len(points):
        raise ValueError(f"cannot cut points of shape {list(points.shape)} into {clusters} clusters")
    if not bool(points.isfinite().all()):
        raise ValueError("cannot cluster points that have NaN or infinite coordinates")
    index = torch.arange(len(points), device=points.device)
    distinct, labels = torch.unique(points, dim=0, return_inverse=True)
    if clusters == 1:
        return torch.zeros_like(index)
    if (extra := clusters - len(distinct)) < 0:
        _check_memory(len(distinct), points.shape[1], points.device)
        labels = _cluster(_normalized(distinct.double()), clusters)[labels]
    else:  # some duplicates form their own cluster: those of lowest index that are not their point's first
        copies = (index != least(index, labels, len(distinct))[labels]).nonzero()[:extra, 0]
        labels[copies] = torch.arange(len(distinct), clusters, device=points.device)
    rank: Tensor = least(index, labels, clusters).argsort().argsort()
    return rank[labels]


def complete_linkage_bytes(n: int, d: int, device: str = "cpu") -> int:
    """Estimates the peak bytes for clustering n points of d dimensions on a device type, without the points."""
    scratch = 12 * max(CHUNK[device], n * n // MATRIX_PARTS) + 16 * CHUNK[device]
    return 4 * n * n + scratch + (8 * ROWS_PER_BLOCK[device] + 40 * d + 512) * n


def _check_memory(n: int, d: int, device: torch.device) -> None:
    needed, free = complete_linkage_bytes(n, d, device.type) / 2**30, free_memory(device) / 2**30
    if needed > free:
        size = f"n = {n} points needs {needed:.2f} GiB, and {free:.2f} GiB are free on {device}"
        raise MemoryError(f"complete linkage of {size}: lower budget.candidates")


def _normalized(points: Tensor) -> Tensor:
    """Centers points [n, d] and scales them into [-1, 1] by powers of two, so that grid coordinates stay exact."""
    points = points / _power_of_two(points)
    step = _power_of_two(points - points.mean(0)) / 2**16
    return (points - (points.mean(0) / step).round() * step) / step / 2**16


def _power_of_two(points: Tensor) -> Tensor:
    return torch.exp2(points.abs().amax().clamp(min=1e-300).log2().ceil())


def _cluster(points: Tensor, clusters: int) -> Tensor:
    """Clusters distinct normalized points [n, d], 1 < clusters < n; returns labels [n]."""
    rounds, merges = Rounds(points), len(points) - clusters
    cutoff = torch.full((), torch.inf, device=points.device)
    while True:
        near, slot = rounds.near, torch.arange(len(rounds.near), device=points.device)
        lower, _ = rounds.bounds(rounds.height, rounds.slack)
        low = ((near[near] == slot) & (slot < near) & (lower <= cutoff)).nonzero()[:, 0]
        pair = torch.stack([low, near[low]])
        if not len(low):
            nearest = lower.argmin()
            if bool(lower[nearest] > cutoff):
                return rounds.cut(merges)
            pair = torch.stack([nearest, near[nearest]]).sort().values[:, None]  # reciprocal, but for rounding
        rounds.merge(*pair)
        if rounds.merged >= merges:  # the lowest merges cannot exceed the highest of this many known ones
            _, upper = rounds.bounds(torch.cat(rounds.heights), torch.cat(rounds.slacks))
            cutoff = upper.sort().values[merges - 1]
