"""Rounds of simultaneous merges: the work behind `linkage.complete_linkage`."""

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 24}  # elements handled at a time: what a CPU caches, what fills a GPU
PRODUCT = {"cpu": 512, "cuda": 1024}  # rows of float64 distances held at a time
FOLDED = 24  # one part in this many of the matrix is folded at a time
LIVING = 0.7  # below this share of living slots, writing the matrix anew pays for itself
GRID, NORM = 2**20, 2**11  # multiples of 1 / GRID have exact float64 products up to this squared norm
ROUNDING = 2.0**-22  # of float32, with room to spare


class Rounds:
    """The living clusters, one slot each, with their distances and nearest neighbors; and the merges so far.

    Slots die when their cluster joins that of a lower slot. A merge hangs the members of one cluster behind those
    of the other, so that the members of every cluster there ever was are neighbors in the final order.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.matrix, self.exact = _squared_distances(points)  # [slots, slots]; infinite on the diagonal
        error = 0.0 if self.exact else 32 * (points.shape[1] + 2) * 2.0**-52  # of float64 products
        self.slack = (points.square().sum(1) * error).float()  # [slots]
        self.dead = torch.zeros_like(self.slack)  # [slots] infinite for the dead: added to distances
        self.height = torch.zeros_like(self.slack)  # [slots] squared distance to the nearest
        self.id = torch.arange(len(points), device=points.device)  # [slots] a point that names the cluster
        self.near = self.id.clone()  # [slots] the nearest slot; a dead one's is itself
        self.parent, self.offset = self.id.clone(), torch.zeros_like(self.id)  # [n] whom it hangs behind, how far
        self.size = torch.ones_like(self.id)  # [n] members of the cluster that a point names
        self.pairs: list[Tensor] = []  # per round [4, p]: the two names, the two sizes
        self.heights: list[Tensor] = []  # per round [p]
        self.slacks: list[Tensor] = []  # per round [p]
        self.merged = 0
        size = max(CHUNK[points.device.type], len(points) ** 2 // FOLDED, len(points))
        self.scratch = self.slack.new_empty(3, size)
        self.scan(self.id)

    def bounds(self, height: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest that true squared distances can be, given the stored ones."""
        rounding = 0.0 if self.exact else ROUNDING
        return height * (1 - rounding) - slack, height * (1 + rounding) + slack

    def merge(self, low: Tensor, high: Tensor) -> None:
        """Merges slots `high` [p] into the lower slots `low` [p], and finds the nearest slots anew."""
        first, second = self.id[low], self.id[high]
        self.slack[low] = torch.maximum(self.slack[low], self.slack[high])
        self.pairs.append(torch.stack([first, second, self.size[first], self.size[second]]))
        self.heights.append(self.height[low])
        self.slacks.append(self.slack[low])
        self.merged += len(low)
        self.parent[second], self.offset[second] = first, self.size[first]
        self.size[first] += self.size[second]
        self.fold(low, high)
        touched = torch.zeros_like(self.near, dtype=torch.bool)
        touched[low] = touched[high] = True
        stale = touched[self.near]  # from the other slots, all but the nearest may have moved away
        stale[high], self.near[high], self.height[high], self.dead[high] = False, high, torch.inf, torch.inf
        if len(self.points) - self.merged < LIVING * len(stale):
            stale = stale[self.compact()]
        self.scan(stale.nonzero()[:, 0])

    def fold(self, low: Tensor, high: Tensor) -> None:
        """Writes the farther of two merging slots' distances into the row and the column of the lower slot."""
        n = len(self.near)
        for start in range(0, len(low), step := self.scratch.shape[1] // n):
            one, two = low[start : start + step], high[start : start + step]
            rows, other, columns = (part[: len(one) * n] for part in self.scratch)
            rows, other = rows.view(-1, n), other.view(-1, n)
            torch.index_select(self.matrix, 0, one, out=rows)
            torch.maximum(rows, torch.index_select(self.matrix, 0, two, out=other), out=rows)
            rows[:, one] = torch.maximum(rows[:, one], rows[:, two])
            self.matrix[one] = rows
            self.matrix[:, one] = columns.view(n, -1).copy_(rows.T)  # scattering is fast from contiguous rows

    def compact(self) -> Tensor:
        """Writes the matrix anew without dead slots, in its own storage, and returns the slots kept.

        They keep their order, so no row is written before what lies there has been read.
        """
        alive = self.dead == 0
        keep = alive.nonzero()[:, 0]
        old, n, m = self.matrix, len(alive), len(keep)
        self.matrix = old.view(-1)[: m * m].view(m, m)
        for start in range(0, m, step := max(1, CHUNK[keep.device.type] // n)):
            rows = keep[start : start + step]
            block = torch.index_select(old, 0, rows, out=self.scratch[0, : len(rows) * n].view(-1, n))
            torch.index_select(block, 1, keep, out=self.matrix[start : start + step])
        self.near = (alive.cumsum(0) - 1)[self.near[keep]]
        self.id, self.height, self.slack, self.dead = (v[keep] for v in (self.id, self.height, self.slack, self.dead))
        return keep

    def scan(self, rows: Tensor) -> None:
        """Finds the nearest slots of the given ones."""
        n = len(self.near)
        runner_up = self.height.new_empty(len(rows))
        for start in range(0, len(rows), step := max(1, CHUNK[rows.device.type] // n)):
            some = rows[start : start + step]
            block = torch.index_select(self.matrix, 0, some, out=self.scratch[0, : len(some) * n].view(-1, n))
            self.height[some], self.near[some] = nearest = block.add_(self.dead).min(1)
            block.scatter_(1, nearest.indices[:, None], torch.inf)
            torch.amin(block, 1, out=runner_up[start : start + step])
        _, reach = self.bounds(self.height[rows], self.slack[rows])
        if len(tied := rows[runner_up <= reach]):
            self.settle(tied)

    def settle(self, tied: Tensor) -> None:
        """Chooses the nearest slots of the given ones where float32 cannot tell: by float64, then by rank."""
        members, place = _leaves(self.parent, self.offset, self.size)
        for rows in tied.tensor_split(1 + 8 * len(tied) * len(self.near) // CHUNK[tied.device.type]):
            block, (_, reach) = self.matrix[rows] + self.dead, self.bounds(self.height[rows], self.slack[rows])
            row, slot = (block <= reach[:, None]).nonzero(as_tuple=True)
            pair = torch.stack([self.id[rows[row]], self.id[slot]]).sort(0).values
            distance = block[row, slot]
            if not self.exact:
                distance = farthest(self.points, members, place[pair], self.size[pair])
            farther = distance > least(distance, row, len(rows))[row]
            rank = _mixed(*pair).masked_fill(farther, 2**63 - 1)
            best = (rank == least(rank, row, len(rows))[row]).nonzero()[:, 0]
            self.near[rows[row[best]]] = slot[best]

    def cut(self, merges: int) -> Tensor:
        """Labels [n] after this many of the lowest merges; equally high ones count in the order they were made."""
        pairs, heights = torch.cat(self.pairs, 1), torch.cat(self.heights)
        lower, upper = self.bounds(heights, torch.cat(self.slacks))
        taken = upper < lower.sort().values[merges - 1]
        unsure = (~taken & (lower <= upper.sort().values[merges - 1])).nonzero()[:, 0]
        height = heights[unsure]
        if not self.exact:
            members, place = _leaves(self.parent, self.offset, self.size)
            height = farthest(self.points, members, place[pairs[:2, unsure]], pairs[2:, unsure])
        taken[unsure[height.argsort(stable=True)][: merges - int(taken.sum())]] = True
        parent = torch.arange(len(self.points), device=heights.device)
        parent[pairs[1, taken]] = pairs[0, taken]
        labels: Tensor = torch.unique(_roots(parent, parent)[0], return_inverse=True)[1]
        return labels


def _squared_distances(points: Tensor) -> tuple[Tensor, bool]:
    """Squared distances [n, n] in float32, infinite on the diagonal, and whether they are free of rounding."""
    n, step = len(points), PRODUCT[points.device.type]
    norm, one = points.square().sum(1, keepdim=True), points.new_ones(n, 1)
    right = torch.cat([points * -2, one, norm], 1).T
    matrix = torch.empty(n, n, device=points.device)
    buffer = points.new_empty(min(step, n) * n)
    exact = bool(((points * GRID).frac() == 0).all() & (norm.amax() <= NORM))
    for start in range(0, n, step):
        rows, rest = slice(start, min(start + step, n)), slice(start + step, n)
        left = torch.cat([points[rows], norm[rows], one[rows]], 1)
        block = torch.mm(left, right[:, start:], out=buffer[: len(left) * (n - start)].view(len(left), -1))
        matrix[rows, start:] = block.clamp_(min=0)
        matrix[rest, rows] = matrix[rows, rest].T
        exact = exact and bool((matrix[rows, start:] == block).all())
    matrix.fill_diagonal_(torch.inf)
    return matrix, exact


def _roots(parent: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The root above each node [n] and the sum of the offsets on the way, by doubling the steps."""
    while not torch.equal(above := parent[parent], parent):
        parent, offset = above, offset + offset[parent]
    return parent, offset


def _leaves(parent: Tensor, offset: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The points in an order that keeps the members of each cluster together, and the place [n] of each point."""
    root, position = _roots(parent, offset)
    width = torch.where(root == torch.arange(len(root), device=root.device), size, 0)
    place = (width.cumsum(0) - width)[root] + position
    return place.argsort(), place


def farthest(points: Tensor, members: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """Squared distances [p] of the farthest members of pairs of clusters: their places and sizes are [2, p]."""
    count = size[0] * size[1]
    ends, total = count.cumsum(0), int(count.sum())
    farthest = points.new_zeros(len(ends))
    for start in range(0, total, step := max(1, CHUNK[points.device.type] // 8 // points.shape[1])):
        at = torch.arange(start, min(start + step, total), device=points.device)
        pair = torch.searchsorted(ends, at, right=True)
        at += count[pair] - ends[pair]
        left, right = members[place[0, pair] + at // size[1, pair]], members[place[1, pair] + at % size[1, pair]]
        farthest.scatter_reduce_(0, pair, (points[left] - points[right]).square_().sum(1), "amax")
    return farthest


def least(key: Tensor, group: Tensor, groups: int) -> Tensor:
    """The least key [groups] of each group."""
    return key.new_zeros(groups).scatter_reduce(0, group, key, "amin", include_self=False)


def _mixed(first: Tensor, second: Tensor) -> Tensor:
    """A pseudo-random key for pairs of ids: in plain order, a line of equal steps would merge one pair a round."""
    key = first * 0x1E3779B97F4A7C15 + second * 0x42B2AE3D27D4EB4F
    key = (key ^ (key >> 29)) * 0x3F58476D1CE4E5B9
    return key ^ (key >> 32)
