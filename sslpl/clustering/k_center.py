"""Greedy k-center."""

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import nearest, squares_between

AT_ONCE = 256  # distances that are brought up to date together
RECENT = 16  # those which miss more choices are so apart from the others, for they cost more


def k_center_greedy(centers: Tensor, points: Tensor, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Rows [n] of points [U, D], each the farthest from centers [L, D] and the rows before, and its distance [n].

    Distances are Euclidean, ties are broken by the generator; beside the points, memory is linear in n + U; results on
    the CPU. Distances only shrink: one that counts but some of the rows bounds the one that counts all, and is brought
    up to date only while it is among the longest (as Minoux 1978 does for sets). Points far from any choice are never
    read again, which makes it quick where they lie in a file.
    """
    order = torch.randperm(len(points), generator=rng)  # the first of equals is then a random one
    place, origin = order.to(points.device), points.mean(dim=0)
    distance = nearest(points, centers, origin)[0].double().square()[place]
    chosen = torch.empty(n, points.shape[1], dtype=torch.float64, device=points.device)
    counted = torch.zeros_like(place)  # how many of the chosen a distance counts
    rows, radius = [], []
    for count in range(n):
        while counted[row := distance.argmax()] < count:
            some = outdated_rows(distance, counted, row, count)
            since = int(counted[some].min())
            near = squares_between((points[place[some]] - origin).double(), chosen[since:count]).amin(dim=1)
            distance[some], counted[some] = torch.minimum(distance[some], near), count
        rows.append(row)
        radius.append(distance[row].clone())
        chosen[count] = points[place[row]] - origin
        distance[row] = -1  # below the copies of it, which have 0
    return order[torch.stack(rows).cpu()], torch.stack(radius).sqrt().cpu()


def outdated_rows(distance: Tensor, counted: Tensor, row: Tensor, count: int) -> Tensor:
    """Of the longest distances those to bring up to date with a row: as recent as it, or as old."""
    some = distance.topk(min(AT_ONCE, len(distance))).indices
    missed, own = count - counted[some], count - counted[row]
    return torch.cat([row[None], some[(missed > 0) & ((missed > RECENT) == (own > RECENT)) & (some != row)]])
