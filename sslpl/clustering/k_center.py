"""Greedy k-center."""

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import nearest, squares_between

BATCH = 256  # distances that are updated together
RECENT = 16  # distances that miss more centers than this cost more and are updated separately


def k_center_greedy(centers: Tensor, points: Tensor, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Selects rows [n] of points [U, D], each farthest from centers [L, D] and earlier rows; also returns radii [n].

    Distances are Euclidean, ties are broken by the generator, and results are on the CPU; memory beyond the points is
    linear in n + U. Distances only shrink as rows are added: an outdated distance is an upper bound and is updated only
    while it is among the largest (lazy greedy: Minoux 1978). Most points are therefore read rarely, which is fast for
    points in a file.
    """
    order = torch.randperm(len(points), generator=rng)  # so that argmax breaks ties at random
    shuffled, origin = order.to(points.device), points.mean(dim=0)
    distance = nearest(points, centers, origin)[0].double().square()[shuffled]
    chosen = torch.empty(n, points.shape[1], dtype=torch.float64, device=points.device)
    counted = torch.zeros_like(shuffled)  # how many of the chosen rows a distance includes
    rows, radius = [], []
    for count in range(n):
        while counted[row := distance.argmax()] < count:
            stale = outdated_rows(distance, counted, row, count)
            oldest = int(counted[stale].min())
            squares = squares_between((points[shuffled[stale]] - origin).double(), chosen[oldest:count]).amin(dim=1)
            distance[stale], counted[stale] = torch.minimum(distance[stale], squares), count
        rows.append(row)
        radius.append(distance[row].clone())
        chosen[count] = points[shuffled[row]] - origin
        distance[row] = -1  # below its duplicates, which have 0
    return order[torch.stack(rows).cpu()], torch.stack(radius).sqrt().cpu()


def outdated_rows(distance: Tensor, counted: Tensor, row: Tensor, count: int) -> Tensor:
    """Returns the largest outdated distances to update together with a row: those about as outdated as it."""
    largest = distance.topk(min(BATCH, len(distance))).indices
    missed, row_missed = count - counted[largest], count - counted[row]
    similar = (missed > 0) & ((missed > RECENT) == (row_missed > RECENT)) & (largest != row)
    return torch.cat([row[None], largest[similar]])
