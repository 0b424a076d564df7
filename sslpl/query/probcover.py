"""ProbCover: greedy coverage of the images by balls (Yehuda et al. 2022), without a graph in memory.

Which images lie in whose ball is computed in blocks and forgotten. The balls' counts of uncovered images need it
again only for the newly covered ones, and no image is newly covered twice: together the updates cost what the
first count does. Memory is linear in the images, whatever the radius.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.clustering.k_means import k_means
from sslpl.clustering.neighbors import blocks
from sslpl.query.context import needs_subset, works_unlabeled
from sslpl.query.selection import select_rows, subsample
from sslpl.types import Count, Positive, QueryContext, Selection, Share

GRID = 2**26  # cosines of vectors on multiples of 1 / GRID are exact in float64, whatever the order of summation
COPY = 1 - 2.0**-20  # vectors with a higher cosine are copies, rounding included


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
    """The images whose balls of radius `delta` cover the most images not yet covered, one after the other.

    Yehuda et al. 2022: balls are open, embeddings L2-normalized, those of labeled images cover from the start.
    Without `delta` it is the largest radius at which a share `purity` of the balls of all images are pure: within one
    cluster of k-means with as many clusters as classes, as in the paper; the published code is given a radius. Radii
    under 0.0014 count as that. What is chosen once everything is covered follows a random order, as do ties. The score
    is how many images a choice newly covers. All pairs of images are compared, or of a random `subset` (ours), whose
    balls alone count then.
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)
    seen = on_grid(context.labeled_predictions.embedding)
    points = on_grid(context.predictions.embedding[order.to(seen.device)])
    everything = torch.cat([seen, points])
    if delta is None:
        label = k_means(everything.float(), min(context.num_classes, len(everything)), rng).label
        cosine = pure_cosine(everything, label, purity)
    else:
        cosine = 1 - delta**2 / 2
    rows, gain = greedy_coverage(points, covered(points, seen, min(cosine, COPY)), min(cosine, COPY), n)
    return Selection(select_rows(context, order[rows.cpu()]).index, gain.cpu().double())


def on_grid(embedding: Tensor) -> Tensor:
    """Unit vectors [N, D] in float64 with coordinates on multiples of 1 / GRID; zeros stay."""
    return normalize(embedding.double()).mul_(GRID).round_().div_(GRID)


def pure_cosine(points: Tensor, label: Tensor, purity: float) -> float:
    """The lowest cosine, of the widest balls, at which a share `purity` of the balls around points [N, D] are pure.

    The ball of cosines above c is pure if c is at least the cosine of the center's nearest point of another label
    [N]: -1 where there is none.
    """
    other = torch.full((len(points),), -1.0, dtype=points.dtype, device=points.device)
    for rows in blocks(len(points), len(points), points.device):
        cosine = points[rows] @ points.T
        other[rows] = cosine.masked_fill_(label[rows, None] == label, -1).amax(dim=1)
    return float(other.sort().values[max(0, math.ceil(purity * len(points)) - 1)])


def covered(points: Tensor, centers: Tensor, cosine: float) -> Tensor:
    """Which points [N] lie in the ball of any center."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows in blocks(len(points), len(centers), points.device):
        inside[rows] = (points[rows] @ centers.T > cosine).any(dim=1)
    return inside


def ball_sizes(centers: Tensor, points: Tensor, cosine: float) -> Tensor:
    """How many of the points lie in the ball of each center [N]."""
    size = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
    for rows in blocks(len(centers), len(points), centers.device):
        size[rows] = (centers[rows] @ points.T > cosine).sum(dim=1)
    return size


def greedy_coverage(points: Tensor, covered: Tensor, cosine: float, n: int) -> tuple[Tensor, Tensor]:
    """Rows [n] of the largest balls, counting what is not yet covered [N], and their counts [n]; ties: the first."""
    size, rows, gain = ball_sizes(points, points[~covered], cosine), [], []
    taken = torch.zeros_like(covered)
    for _ in range(n):
        row = size.masked_fill(taken, -1).argmax(dim=0, keepdim=True)
        rows.append(row)
        gain.append(size[row])
        new = (points @ points[row][0] > cosine) & ~covered
        size = size - ball_sizes(points, points[new], cosine)
        covered, taken = covered | new, taken.index_fill(0, row, True)
    return torch.cat(rows), torch.cat(gain)
