"""Rounds of simultaneous merges, the core of `linkage.complete_linkage`."""

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 24}  # elements per block: what fits a CPU's cache, what fills a GPU
ROWS_PER_BLOCK = {"cpu": 512, "cuda": 1024}  # rows of float64 distances per block
MATRIX_PARTS = 24  # the matrix is folded in this many parts
MIN_ALIVE_SHARE = 0.7  # below this share of living slots, compacting the matrix pays off
GRID, NORM = 2**20, 2**11  # multiples of 1 / GRID have exact float64 products up to this squared norm
ROUNDING = 2.0**-22  # relative error of float32, with a margin


class Rounds:
    """The current clusters, one slot each, with their distances and nearest neighbors, and all merges so far.

    A slot is dead once its cluster has merged into that of a lower slot. A merge appends the members of one cluster to
    those of the other, so that the members of any intermediate cluster are contiguous in the final order.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.matrix, self.exact = _squared_distances(points)  # [slots, slots]; infinite on the diagonal
        error = 0.0 if self.exact else 32 * (points.shape[1] + 2) * 2.0**-52  # of float64 products
        self.slack = (points.square().sum(1) * error).float()  # [slots]
        self.dead = torch.zeros_like(self.slack)  # [slots] infinite for dead slots: added to distances
        self.height = torch.zeros_like(self.slack)  # [slots] squared distance to the nearest slot
        self.id = torch.arange(len(points), device=points.device)  # [slots] the point that represents the cluster
        self.near = self.id.clone()  # [slots] the nearest slot; of a dead slot: itself
        self.parent, self.offset = self.id.clone(), torch.zeros_like(self.id)  # [n] what a point is appended to, where
        self.size = torch.ones_like(self.id)  # [n] members of the cluster that a point represents
        self.pairs: list[Tensor] = []  # per round [4, p]: both representatives, both sizes
        self.heights: list[Tensor] = []  # per round [p]
        self.slacks: list[Tensor] = []  # per round [p]
        self.merged = 0
        size = max(CHUNK[points.device.type], len(points) ** 2 // MATRIX_PARTS, len(points))
        self.scratch = self.slack.new_empty(3, size)
        self.find_nearest(self.id)

    def bounds(self, height: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Returns lower and upper bounds of the true squared distances for the stored ones."""
        rounding = 0.0 if self.exact else ROUNDING
        return height * (1 - rounding) - slack, height * (1 + rounding) + slack

    def merge(self, low: Tensor, high: Tensor) -> None:
        """Merges slots `high` [p] into the lower slots `low` [p], and updates the nearest slots."""
        first, second = self.id[low], self.id[high]
        self.slack[low] = torch.maximum(self.slack[low], self.slack[high])
        self.pairs.append(torch.stack([first, second, self.size[first], self.size[second]]))
        self.heights.append(self.height[low])
        self.slacks.append(self.slack[low])
        self.merged += len(low)
        self.parent[second], self.offset[second] = first, self.size[first]
        self.size[first] += self.size[second]
        self.merge_distances(low, high)
        touched = torch.zeros_like(self.near, dtype=torch.bool)
        touched[low] = touched[high] = True
        stale = touched[self.near]  # the others' nearest cannot have changed, since merged clusters only move away
        stale[high], self.near[high], self.height[high], self.dead[high] = False, high, torch.inf, torch.inf
        if len(self.points) - self.merged < MIN_ALIVE_SHARE * len(stale):
            stale = stale[self.compact()]
        self.find_nearest(stale.nonzero()[:, 0])

    def merge_distances(self, low: Tensor, high: Tensor) -> None:
        """Writes the maximum of two merging slots' distances into the row and the column of the lower slot."""
        n = len(self.near)
        for start in range(0, len(low), step := self.scratch.shape[1] // n):
            one, two = low[start : start + step], high[start : start + step]
            rows, other, columns = (part[: len(one) * n] for part in self.scratch)
            rows, other = rows.view(-1, n), other.view(-1, n)
            torch.index_select(self.matrix, 0, one, out=rows)
            torch.maximum(rows, torch.index_select(self.matrix, 0, two, out=other), out=rows)
            rows[:, one] = torch.maximum(rows[:, one], rows[:, two])
            self.matrix[one] = rows
            self.matrix[:, one] = columns.view(n, -1).copy_(rows.T)  # scattering from contiguous rows is fast

    def compact(self) -> Tensor:
        """Removes dead slots from the matrix in place and returns the remaining slots.

        Slots keep their order, so that no row is overwritten before it has been read.
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

    def find_nearest(self, rows: Tensor) -> None:
        """Finds the nearest slot of each given slot."""
        n = len(self.near)
        runner_up = self.height.new_empty(len(rows))
        for start in range(0, len(rows), step := max(1, CHUNK[rows.device.type] // n)):
            slots = rows[start : start + step]
            block = torch.index_select(self.matrix, 0, slots, out=self.scratch[0, : len(slots) * n].view(-1, n))
            self.height[slots], self.near[slots] = nearest = block.add_(self.dead).min(1)
            block.scatter_(1, nearest.indices[:, None], torch.inf)
            torch.amin(block, 1, out=runner_up[start : start + step])
        _, reach = self.bounds(self.height[rows], self.slack[rows])
        if len(tied := rows[runner_up <= reach]):
            self.resolve_ties(tied)

    def resolve_ties(self, tied: Tensor) -> None:
        """Resolves the nearest slots of slots that are tied in float32: by float64, then by pseudo-random rank."""
        members, position = _leaf_order(self.parent, self.offset, self.size)
        for rows in tied.tensor_split(1 + 8 * len(tied) * len(self.near) // CHUNK[tied.device.type]):
            block, (_, reach) = self.matrix[rows] + self.dead, self.bounds(self.height[rows], self.slack[rows])
            row, slot = (block <= reach[:, None]).nonzero(as_tuple=True)
            pair = torch.stack([self.id[rows[row]], self.id[slot]]).sort(0).values
            distance = block[row, slot]
            if not self.exact:
                distance = max_distances(self.points, members, position[pair], self.size[pair])
            farther = distance > least(distance, row, len(rows))[row]
            rank = _hash_pairs(*pair).masked_fill(farther, 2**63 - 1)
            best = (rank == least(rank, row, len(rows))[row]).nonzero()[:, 0]
            self.near[rows[row[best]]] = slot[best]

    def cut(self, merges: int) -> Tensor:
        """Returns labels [n] after this many of the lowest merges; ties count in the order of merging."""
        pairs, heights = torch.cat(self.pairs, 1), torch.cat(self.heights)
        lower, upper = self.bounds(heights, torch.cat(self.slacks))
        accepted = upper < lower.sort().values[merges - 1]
        undecided = (~accepted & (lower <= upper.sort().values[merges - 1])).nonzero()[:, 0]
        height = heights[undecided]
        if not self.exact:
            members, position = _leaf_order(self.parent, self.offset, self.size)
            height = max_distances(self.points, members, position[pairs[:2, undecided]], pairs[2:, undecided])
        accepted[undecided[height.argsort(stable=True)][: merges - int(accepted.sum())]] = True
        parent = torch.arange(len(self.points), device=heights.device)
        parent[pairs[1, accepted]] = pairs[0, accepted]
        labels: Tensor = torch.unique(_roots(parent, parent)[0], return_inverse=True)[1]
        return labels


def _squared_distances(points: Tensor) -> tuple[Tensor, bool]:
    """Computes squared distances [n, n] in float32, infinite on the diagonal; also returns True if they are exact."""
    n, step = len(points), ROWS_PER_BLOCK[points.device.type]
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
    """Returns the root of each node [n] and the sum of the offsets to it, by pointer doubling."""
    while not torch.equal(grandparent := parent[parent], parent):
        parent, offset = grandparent, offset + offset[parent]
    return parent, offset


def _leaf_order(parent: Tensor, offset: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Returns an order of the points in which clusters are contiguous, and the position [n] of each point in it."""
    root, shift = _roots(parent, offset)
    width = torch.where(root == torch.arange(len(root), device=root.device), size, 0)
    position = (width.cumsum(0) - width)[root] + shift
    return position.argsort(), position


def max_distances(points: Tensor, members: Tensor, position: Tensor, size: Tensor) -> Tensor:
    """Computes maximum squared distances [p] between clusters that start at `position` [2, p], of `size` [2, p]."""
    count = size[0] * size[1]
    ends, total = count.cumsum(0), int(count.sum())
    farthest = points.new_zeros(len(ends))
    for start in range(0, total, step := max(1, CHUNK[points.device.type] // 8 // points.shape[1])):
        flat = torch.arange(start, min(start + step, total), device=points.device)
        pair = torch.searchsorted(ends, flat, right=True)
        flat += count[pair] - ends[pair]
        left = members[position[0, pair] + flat // size[1, pair]]
        right = members[position[1, pair] + flat % size[1, pair]]
        farthest.scatter_reduce_(0, pair, (points[left] - points[right]).square_().sum(1), "amax")
    return farthest


def least(key: Tensor, group: Tensor, groups: int) -> Tensor:
    """Returns the minimum key of each group [groups]."""
    return key.new_zeros(groups).scatter_reduce(0, group, key, "amin", include_self=False)


def _hash_pairs(first: Tensor, second: Tensor) -> Tensor:
    """Hashes pairs of ids: in their plain order, equidistant points on a line would merge one pair per round."""
    key = first * 0x1E3779B97F4A7C15 + second * 0x42B2AE3D27D4EB4F
    key = (key ^ (key >> 29)) * 0x3F58476D1CE4E5B9
    return key ^ (key >> 32)
