"""ProbCover: greedy coverage of the images by balls (Yehuda et al. 2022), without a graph in memory.

The images in each ball are computed in blocks and not stored. To update the balls' counts of uncovered images, only
the newly covered ones are needed, and no image is newly covered twice: all updates together cost as much as the first
count. Memory is linear in the number of images for any radius.
"""

import math

import torch
from torch import Generator, Tensor

from sslpl.clustering.k_means import k_means
from sslpl.clustering.neighbors import blocks, on_grid
from sslpl.query.context import needs_subset, works_unlabeled
from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, Positive, QueryContext, Selection, Share

COPY = 1 - 2.0**-20  # vectors with a higher cosine are duplicates up to rounding


@needs_subset
@works_unlabeled
def probcover(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    delta: Positive | None = None,
    purity: Share = 0.95,
    subset: Count | None = None,
) -> Selection:
    """Selects one by one the image whose ball of radius `delta` covers the most uncovered images.

    Yehuda et al. 2022: balls are open, embeddings L2-normalized, and the balls of labeled images cover from the start.
    Without `delta`, the radius is the largest at which a share `purity` of all balls are pure: within one cluster of
    k-means with as many clusters as classes, as in the paper; the published code expects a radius. Radii below 0.0014
    are raised to it. Ties are broken at random, also once all images are covered. The score is the number of newly
    covered images. All pairs of images are compared, or those of a random `subset` (ours).
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)
    labeled = on_grid(context.labeled_predictions.embedding)
    points = on_grid(context.predictions.embedding[order.to(labeled.device)])
    pool = torch.cat([labeled, points])
    if delta is None:
        assignment = k_means(pool.float(), min(context.num_classes, len(pool)), rng).assignment
        cosine = pure_cosine(pool, assignment, purity)
    else:
        cosine = 1 - delta**2 / 2
    rows, gain = greedy_coverage(points, covered(points, labeled, min(cosine, COPY)), min(cosine, COPY), n)
    return Selection(select_rows(context, order[rows.cpu()]).index, gain.cpu().double())


def pure_cosine(points: Tensor, cluster: Tensor, purity: float) -> float:
    """Returns the lowest cosine (largest radius) at which a share `purity` of the balls around points [N, D] are pure.

    The ball of cosines above c is pure if c is at least the cosine to the nearest point of another cluster, which is
    -1 if there is none.
    """
    nearest_other = torch.full((len(points),), -1.0, dtype=points.dtype, device=points.device)
    for rows in blocks(len(points), len(points), points.device):
        later = slice(rows.start, None)  # each pair is compared once
        cosine = (points[rows] @ points[later].T).masked_fill_(cluster[rows, None] == cluster[later], -1)
        nearest_other[rows] = torch.maximum(nearest_other[rows], cosine.amax(dim=1))
        nearest_other[later] = torch.maximum(nearest_other[later], cosine.amax(dim=0))
    return float(nearest_other.sort().values[max(0, math.ceil(purity * len(points)) - 1)])


def covered(points: Tensor, centers: Tensor, cosine: float) -> Tensor:
    """Returns a mask [N] of the points that lie in the ball of any center."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows in blocks(len(points), len(centers), points.device):
        inside[rows] = (points[rows] @ centers.T > cosine).any(dim=1)
    return inside


def ball_sizes(centers: Tensor, points: Tensor, cosine: float) -> Tensor:
    """Counts the points in the ball of each center [N]."""
    size = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
    for rows in blocks(len(centers), len(points), centers.device):
        size[rows] = (centers[rows] @ points.T > cosine).sum(dim=1)
    return size


def greedy_coverage(points: Tensor, covered: Tensor, cosine: float, n: int) -> tuple[Tensor, Tensor]:
    """Returns rows [n] and counts [n] of the balls that greedily cover most uncovered points; ties: the first."""
    size, rows, gain = ball_sizes(points, points[~covered], cosine), [], []
    selected = torch.zeros_like(covered)
    for _ in range(n):
        row = size.masked_fill(selected, -1).argmax(dim=0, keepdim=True)
        rows.append(row)
        gain.append(size[row])
        newly_covered = (points @ points[row][0] > cosine) & ~covered
        size = size - ball_sizes(points, points[newly_covered], cosine)
        covered, selected = covered | newly_covered, selected.index_fill(0, row, True)
    return torch.cat(rows), torch.cat(gain)
