"""Exact complete-linkage clustering in rounds of simultaneous merges, the same code for CPU and CUDA.

Complete linkage is reducible: merging two clusters never brings them nearer to a third. Clusters that are each other's
nearest neighbor may therefore merge at once, in any order (Bruynooghe 1978, Murtagh 1983); merging all such pairs of a
round together is ours. Squared distances are stored in float32, yet the result is that of float64: rounding keeps the
order of the maxima, so only what lies closer together than the rounding has to be measured again in float64.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["complete_linkage", "complete_linkage_bytes"]

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}  # elements handled at a time: what a CPU caches, what fills a GPU
PRODUCT = {"cpu": 256, "cuda": 1024}  # rows of float64 distances held at a time
FEW = 1 / 16  # below this share of merging slots, writing their columns beats rewriting the matrix
STALE = 1 / 5  # above this share of dead slots, rewriting the matrix pays for itself
RELATIVE = 2.0**-22  # between float32 neighbors of one distance, with room to spare
TINY = 1e-300


@torch.no_grad()
def complete_linkage(points: Tensor, clusters: int) -> Tensor:
    """Labels [n], int64 in 0..clusters-1, of the complete-linkage clustering of `points` [n, d] by Euclidean distance.

    The partition left by n - clusters merges, each of the two clusters whose farthest members are nearest. Copies of a
    point merge first; other ties are broken by a fixed pseudo-random order of the points' lexicographic ranks. Labels are
    numbered in order of appearance. Raises ValueError for `clusters` outside 1..n and for coordinates that are not
    finite, MemoryError where `complete_linkage_bytes` are not free.
    """
    if points.ndim != 2 or not 1 <= clusters <= len(points):
        raise ValueError(f"cannot cut points of shape {list(points.shape)} into {clusters} clusters")
    if not bool(points.isfinite().all()):
        raise ValueError("cannot cluster points that have NaN or infinite coordinates")
    if clusters == 1:
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    distinct, copy_of = torch.unique(points.double(), dim=0, return_inverse=True)
    if len(distinct) <= clusters:
        labels = _copies_apart(copy_of, len(distinct), clusters)
    else:
        _check_memory(len(distinct), points.shape[1], points.device)
        labels = _cluster(_normalized(distinct), clusters)[copy_of]
    return _by_appearance(labels, clusters)


def complete_linkage_bytes(n: int, d: int) -> int:
    """Bytes of memory that clustering n points of d dimensions takes at its peak, beside the points themselves."""
    return 4 * n * n + (8 * PRODUCT["cpu"] + 512 + 40 * d) * n + 40 * CHUNK["cpu"]


def _check_memory(n: int, d: int, device: torch.device) -> None:
    needed, free = complete_linkage_bytes(n, d), _free_bytes(device)
    if needed > free:
        raise MemoryError(
            f"complete linkage of n = {n} points needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free"
            f" ({device}): lower budget.candidates"
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (meminfo := Path("/proc/meminfo")).exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for group in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
            if (group / limit).exists() and (most := (group / limit).read_text().strip()).isdigit():
                free = min(free, int(most) - int((group / usage).read_text()))
    return free


def _copies_apart(copy_of: Tensor, distinct: int, clusters: int) -> Tensor:
    """Labels where clusters outnumber the distinct points: surplus copies of lowest index stand alone."""
    index = torch.arange(len(copy_of), device=copy_of.device)
    first = torch.full_like(index[:distinct], len(copy_of)).scatter_reduce(0, copy_of, index, "amin")
    surplus = (index != first[copy_of]).nonzero()[: clusters - distinct, 0]
    return copy_of.index_copy(0, surplus, torch.arange(distinct, clusters, device=copy_of.device))


def _by_appearance(labels: Tensor, clusters: int) -> Tensor:
    index = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(index[:clusters], len(labels)).scatter_reduce(0, labels, index, "amin")
    return first.argsort().argsort()[labels]


def _normalized(points: Tensor) -> Tensor:
    """Points [n, d] centered and scaled into [-1, 1]; by powers of two, so that coordinates on a grid stay exact."""
    points = points * torch.exp2(-points.abs().amax().clamp(min=TINY).log2().ceil())
    center = points.mean(0)
    scale = torch.exp2((points - center).abs().amax().clamp(min=TINY).log2().ceil())
    return (points - (center / scale * 256).round() / 256 * scale) / scale


def _cluster(points: Tensor, clusters: int) -> Tensor:
    """Labels [n] of distinct normalized points [n, d]; 1 < clusters < n."""
    merges = len(points) - clusters
    rounds = _Rounds(points)
    limit = torch.full((), torch.inf, device=points.device)
    while True:
        near, slot = rounds.near, torch.arange(len(rounds.near), device=points.device)
        low = ((near[near] == slot) & (slot < near) & (rounds.height <= limit)).nonzero()[:, 0]
        pair = torch.stack([low, near[low]])
        if not len(low):  # nothing left below the limit; or the nearest pair differs from itself by rounding
            nearest = rounds.height.argmin()
            if bool(rounds.height[nearest] > limit):
                return rounds.cut(merges)
            pair = torch.stack([nearest, near[nearest]]).sort().values[:, None]
        rounds.merge(*pair)
        if rounds.merged >= merges:  # the lowest merges cannot lie above this many that are already known
            limit = rounds.above(torch.cat(rounds.heights).sort().values[merges - 1])


class _Rounds:
    """The living clusters, one slot each: who is nearest to whom, and the merges so far."""

    def __init__(self, points: Tensor) -> None:
        device, n = points.device, len(points)
        self.points = points
        self.matrix, self.exact = _squared_distances(points)  # [slots, slots], infinite where nothing may merge
        self.id = torch.arange(n, device=device)  # [slots] the cluster's first point, which names it for good
        self.alive = torch.ones(n, dtype=torch.bool, device=device)  # [slots]
        self.near = torch.arange(n, device=device)  # [slots] nearest slot
        self.height = torch.full((n,), torch.inf, device=device)  # [slots] squared distance to it
        # A merge hangs the second cluster's members behind the first one's: all that there is to know about members.
        self.parent, self.offset, self.size = torch.arange(n, device=device), torch.zeros_like(self.id), torch.ones_like(self.id)
        self.pairs: list[Tensor] = []  # per round [4, p]: the two ids, the two sizes
        self.heights: list[Tensor] = []  # per round [p]
        self.merged = 0
        largest = float(points.square().sum(1).amax())
        self.margin = 0.0 if self.exact else 10 * (points.shape[1] + 2) * 2.0**-52 * largest  # of float64 products
        self.scratch = torch.empty(3, max(CHUNK[device.type], n), device=device)
        self.scan(self.id)

    def above(self, height: Tensor) -> Tensor:
        """What a stored height may not exceed to be, perhaps, no greater than this one."""
        return height if self.exact else height * (1 + RELATIVE) + self.margin

    def merge(self, low: Tensor, high: Tensor) -> None:
        """Merges slots high [p] into slots low [p], all distinct, and finds the nearest slots anew."""
        first, second = self.id[low], self.id[high]
        self.pairs.append(torch.stack([first, second, self.size[first], self.size[second]]))
        self.heights.append(self.height[low])
        self.merged += len(low)
        self.parent[second], self.offset[second] = first, self.size[first]
        self.size[first] += self.size[second]
        touched = torch.zeros_like(self.alive)
        touched[low] = touched[high] = True
        self.alive[high], self.near[high], self.height[high] = False, high, torch.inf
        stale = touched[self.near] & self.alive  # the others only saw farther slots move away
        living = len(self.points) - self.merged
        if len(low) < FEW * len(stale) and living > (1 - STALE) * len(stale):
            self.patch(low, high)
        else:
            stale = stale[self.rewrite(low, high)]
        self.scan(stale.nonzero()[:, 0])

    def patch(self, low: Tensor, high: Tensor) -> None:
        """Writes the rows and columns of a few merged slots in place; those of dead slots become infinite."""
        rows = torch.maximum(self.matrix[low], self.matrix[high])
        rows[:, low] = torch.maximum(rows[:, low], rows[:, high])
        self.matrix[low] = rows
        self.matrix.index_copy_(1, low, rows.T)
        self.matrix.index_fill_(1, high, torch.inf)

    def rewrite(self, low: Tensor, high: Tensor) -> Tensor:
        """Writes the matrix anew without dead slots, and returns the slots kept.

        In its own storage: in the order of the lower slots, a row is written only after all that lay there is read.
        """
        keep = self.alive.nonzero()[:, 0]
        other = torch.arange(len(self.alive), device=keep.device).index_copy(0, low, high)[keep]
        old, n, m = self.matrix, len(self.alive), len(keep)
        self.matrix = old.view(-1)[: m * m].view(m, m)
        step = max(1, CHUNK[keep.device.type] // n)
        for start in range(0, m, step):
            rows = slice(start, min(start + step, m))
            one, two = (self.scratch[k, : (rows.stop - start) * n].view(-1, n) for k in (0, 1))
            torch.index_select(old, 0, keep[rows], out=one)
            torch.index_select(old, 0, other[rows], out=two)
            torch.maximum(one, two, out=one)
            left, right = (self.scratch[k, : (rows.stop - start) * m].view(-1, m) for k in (1, 2))
            torch.index_select(one, 1, keep, out=left)
            torch.index_select(one, 1, other, out=right)
            torch.maximum(left, right, out=self.matrix[rows])
        self.near = (self.alive.cumsum(0) - 1)[self.near[keep]]
        self.height, self.id, self.alive = self.height[keep], self.id[keep], self.alive[keep]
        return keep

    def scan(self, rows: Tensor) -> None:
        """Finds the nearest slots of the given ones."""
        n = len(self.alive)
        second = torch.empty(len(rows), device=rows.device)
        step = max(1, CHUNK[rows.device.type] // n)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            block = torch.index_select(self.matrix, 0, some, out=self.scratch[0, : len(some) * n].view(-1, n))
            self.height[some], self.near[some] = nearest = block.min(1)
            block.scatter_(1, nearest.indices[:, None], torch.inf)
            torch.amin(block, 1, out=second[start : start + step])
        tied = rows[second <= self.above(self.height[rows])]
        if len(tied):
            self.settle(tied)

    def settle(self, tied: Tensor) -> None:
        """Chooses the nearest slots of the given ones where float32 cannot tell: by float64, then by rank."""
        members, place = _leaves(self.parent, self.offset, self.size)
        for rows in tied.split(max(1, CHUNK[tied.device.type] // len(self.alive))):
            block = self.matrix[rows]
            row, slot = (block <= self.above(self.height[rows])[:, None]).nonzero(as_tuple=True)
            first, second = torch.stack([self.id[rows[row]], self.id[slot]]).sort(0).values
            if self.exact:
                distance = block[row, slot]
            else:
                distance = _farthest(self.points, members, place[first], self.size[first], place[second], self.size[second])
            farther = distance > _least(distance, row, len(rows))
            rank = _mixed(first, second).masked_fill(farther, 2**63 - 1)
            best = (rank == _least(rank, row, len(rows))).nonzero()[:, 0]
            self.near[rows[row[best]]] = slot[best]

    def cut(self, merges: int) -> Tensor:
        """Labels [n] after this many of the lowest merges; equally high ones count in the order they were made."""
        (first, second, *sizes), height = torch.cat(self.pairs, 1), torch.cat(self.heights)
        last = height.sort().values[merges - 1]
        taken = self.above(height) < last
        open_ = (~taken & (height <= self.above(last))).nonzero()[:, 0]
        if not self.exact:
            members, place = _leaves(self.parent, self.offset, self.size)
            spans = place[first[open_]], sizes[0][open_], place[second[open_]], sizes[1][open_]
            open_ = open_[_farthest(self.points, members, *spans).argsort(stable=True)]
        taken[open_[: merges - int(taken.sum())]] = True
        parent = torch.arange(len(self.points), device=height.device)
        parent[second[taken]] = first[taken]
        return torch.unique(_roots(parent, torch.zeros_like(parent))[0], return_inverse=True)[1]


def _squared_distances(points: Tensor) -> tuple[Tensor, bool]:
    """Squared distances [n, n] in float32, infinite on the diagonal, and whether they are free of rounding."""
    n, step = len(points), PRODUCT[points.device.type]
    norm, one = points.square().sum(1, keepdim=True), points.new_ones(n, 1)
    right = torch.cat([points * -2, one, norm], 1).T
    matrix = torch.empty(n, n, device=points.device)
    buffer = points.new_empty(min(step, n) * n)
    # Multiples of 2^-20 below this size have exact products; then float32 only has to hold the results.
    exact = ((points * 2**20).frac() == 0).all() & (norm.amax() <= 2**11)
    on_grid = bool(exact)
    for start in range(0, n, step):
        rows, later, rest = slice(start, min(start + step, n)), slice(start, n), slice(start + step, n)
        left = torch.cat([points[rows], norm[rows], one[rows]], 1)
        block = buffer[: len(left) * (n - start)].view(len(left), -1)
        torch.mm(left, right[:, later], out=block).clamp_(min=0)
        matrix[rows, later] = block
        if on_grid:
            exact &= (matrix[rows, later] == block).all()
        matrix[rest, rows] = matrix[rows, rest].T
    matrix.fill_diagonal_(torch.inf)
    return matrix, bool(exact)


def _roots(parent: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The root above each node [n] and the sum of the offsets on the way, by doubling the steps."""
    while not torch.equal(above := parent[parent], parent):
        parent, offset = above, offset + offset[parent]
    return parent, offset


def _leaves(parent: Tensor, offset: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The points in an order where the members of each cluster, past or present, are neighbors; and each one's place."""
    root, position = _roots(parent, offset)
    width = torch.where(root == torch.arange(len(root), device=root.device), size, 0)
    place = (width.cumsum(0) - width)[root] + position
    return place.argsort(), place


def _farthest(points: Tensor, members: Tensor, one: Tensor, size: Tensor, two: Tensor, width: Tensor) -> Tensor:
    """Squared distances [p] of the farthest members of pairs of clusters, given by their places and sizes [p]."""
    ends = (size * width).cumsum(0)
    begins = ends - size * width
    farthest = points.new_zeros(len(ends))
    step = max(1, CHUNK[points.device.type] // 8 // points.shape[1])
    for start in range(0, int(ends[-1]), step):
        at = torch.arange(start, min(start + step, int(ends[-1])), device=points.device)
        pair = torch.searchsorted(ends, at, right=True)
        at = at - begins[pair]
        left, right = members[one[pair] + at // width[pair]], members[two[pair] + at % width[pair]]
        farthest.scatter_reduce_(0, pair, (points[left] - points[right]).square_().sum(1), "amax")
    return farthest


def _least(key: Tensor, group: Tensor, groups: int) -> Tensor:
    """The least key [p] of the group that each key [p] belongs to."""
    return key.new_zeros(groups).scatter_reduce(0, group, key, "amin", include_self=False)[group]


def _mixed(first: Tensor, second: Tensor) -> Tensor:
    """A pseudo-random key for each pair of ids: in plain order, a chain of equal steps would merge one pair a round."""
    key = first * 0x1E3779B97F4A7C15 + second * 0x42B2AE3D27D4EB4F
    key = (key ^ (key >> 29)) * 0x3F58476D1CE4E5B9
    return key ^ (key >> 32)
