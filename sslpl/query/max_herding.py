"""MaxHerding: greedily covers the pool by a Gaussian kernel around the labeled images (Bae et al. 2024)."""

import torch
from torch import Generator

from sslpl.clustering.kernel_coverage import coverage, greedy_kernel_coverage, kernel_points
from sslpl.clustering.neighbors import on_grid
from sslpl.query.context import needs_subset, works_unlabeled
from sslpl.query.selection import subsample
from sslpl.types import Count, Positive, QueryContext, Selection


@needs_subset
@works_unlabeled
def max_herding(
    context: QueryContext, n: int, rng: Generator, *, radius: Positive = 1.0, subset: Count | None = None
) -> Selection:
    """Selects one by one the image that raises the mean coverage of the unlabeled images the most (MaxHerding).

    Bae et al. 2024, with the values of their code: an image is covered by exp(-(d / `radius`)^2), d being the distance
    of its L2-normalized embedding to the nearest labeled or selected one. The score is the rise of the mean. Ties are
    broken at random, also once all images are covered. All pairs of images are compared, or those of a random
    `subset`: their code takes at most 35,000.
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)
    labeled = kernel_points(on_grid(context.labeled_predictions.embedding))
    points = kernel_points(on_grid(context.predictions.embedding[order.to(context.device)]))
    covered = coverage(points, labeled, radius)
    rows, gain = greedy_kernel_coverage(points, covered, torch.ones_like(covered), radius, n)
    return Selection(context.unlabeled[order[rows.cpu()]], gain.cpu() / len(order))
