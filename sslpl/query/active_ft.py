"""ActiveFT: moves centroids until they represent the pool and differ from each other (Xie et al. 2023)."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.clustering.large_pools import GatheredRows
from sslpl.clustering.neighbors import blocks
from sslpl.query.context import works_unlabeled
from sslpl.query.selection import select_rows
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection

CANDIDATES = 32  # nearest points of a centroid that are found for all centroids at once


class CentroidRecipe(NamedTuple):
    """Hyperparameters of the centroids' optimization."""

    temperature: float
    balance: float
    steps: int
    rate: float
    batch: int


@works_unlabeled
def active_ft(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    temperature: Positive = 0.07,
    balance: PositiveOrZero = 1.0,
    steps: Count = 300,
    rate: Positive = 1e-3,
    batch: Count = 100_000,
) -> Selection:
    """Selects the image most similar to each of n centroids that are optimized to represent the pool (ActiveFT).

    Xie et al. 2023, with the values of their code for CIFAR: centroids start at random images and take `steps` of Adam
    on a loss that draws each to the L2-normalized embeddings nearest to it (by cosine / `temperature`), and all apart
    (weighted by `balance`). A step sees at most `batch` random images, as their code for ImageNet does, which takes 100
    steps. Labeled images are further centroids, which do not move, as in the code of Bae et al. 2025; the original
    selects once, without labels. The score is the cosine. An image belongs to the first centroid it is nearest to.
    """
    order = torch.randperm(len(context.unlabeled), generator=rng)
    points = GatheredRows(context.predictions.embedding, order, unit=True)
    if len(order) <= batch:  # every step reads all of them
        every = torch.arange(len(order), device=points.device)
        points = GatheredRows(points[every], every)
    fixed = normalize(context.labeled_predictions.embedding)
    initial = points[torch.arange(n, device=points.device)]
    recipe = CentroidRecipe(temperature, balance, steps, rate, batch)
    rows, cosine = nearest_unused(points, moved_centroids(points, initial, fixed, recipe, rng))
    score = torch.empty(len(order))
    score[order[rows]] = cosine
    return select_rows(context, order[rows], score)


def moved_centroids(
    points: GatheredRows, initial: Tensor, fixed: Tensor, recipe: CentroidRecipe, rng: Generator
) -> Tensor:
    """Returns the centroids [n, D], of unit length, after the steps from `initial`; those of `fixed` [L, D] stay.

    Images nearest to a fixed centroid move nothing.
    """
    centroids = initial.clone().requires_grad_()
    optimizer = torch.optim.Adam([centroids], lr=recipe.rate)
    least = highest_cosine(points, fixed)
    every = torch.arange(len(points), device=points.device)
    for _ in range(recipe.steps):
        rows = every
        if len(every) > recipe.batch:
            rows = torch.randperm(len(every), generator=rng)[: recipe.batch].to(every.device)
        with torch.enable_grad():
            unit = normalize(centroids)
            repulsion = log_repulsion(torch.cat([fixed, unit.detach()]), unit, recipe.temperature)
            pull, push = loss_gradient(points, rows, least, unit.detach(), repulsion.detach(), recipe)
            (gradient,) = torch.autograd.grad((push * repulsion).sum() - (pull * unit).sum(), centroids)
        centroids.grad = gradient
        optimizer.step()
    return normalize(centroids.detach())


def highest_cosine(points: GatheredRows, centroids: Tensor) -> Tensor:
    """Returns the cosine [N] of each point to its nearest centroid [K, D]; -1 without centroids."""
    highest = torch.full((len(points),), -1.0, dtype=points.table.dtype, device=points.device)
    every = torch.arange(len(points), device=points.device)
    for part in blocks(len(points), max(centroids.shape), points.device) if len(centroids) else ():
        highest[part] = (points[every[part]] @ centroids.T).amax(dim=1)
    return highest


def log_repulsion(centroids: Tensor, moving: Tensor, temperature: float) -> Tensor:
    """Computes log sum_j exp(c_j . m_k / temperature) [K] over all centroids c for each moving one m."""
    return (centroids @ moving.T / temperature).logsumexp(dim=0)


def loss_gradient(
    points: GatheredRows, rows: Tensor, least: Tensor, centroids: Tensor, repulsion: Tensor, recipe: CentroidRecipe
) -> tuple[Tensor, Tensor]:
    """Returns minus the gradient [K, D] of the loss by the centroids, and its gradient [K] by their repulsion.

    The loss is the mean over images of log(1 + balance x exp(repulsion - cosine / temperature)) for the centroid
    nearest to each (Xie et al. 2023, as in their code); images whose cosine is not above `least` [N] do not count.
    """
    pull, push = torch.zeros_like(centroids), torch.zeros_like(repulsion)
    log_balance = repulsion.new_tensor(recipe.balance).log()
    for part in blocks(len(rows), max(centroids.shape), rows.device):
        images = points[rows[part]]
        cosine, nearest = (images @ centroids.T).max(dim=1)
        slope = torch.sigmoid(log_balance + repulsion[nearest] - cosine / recipe.temperature) / len(rows)
        slope = slope.masked_fill_(cosine <= least[rows[part]], 0)
        pull.index_add_(0, nearest, images * (slope / recipe.temperature)[:, None])
        push.index_add_(0, nearest, slope)
    return pull, push


def nearest_unused(points: GatheredRows, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns for each centroid [n, D] in turn the row of its nearest unused point, and their cosine, on the CPU."""
    cosines, candidates = (part.cpu() for part in nearest_points(points, centroids, min(CANDIDATES, len(points))))
    used, rows, score = torch.zeros(len(points), dtype=torch.bool), [], []
    for k, (cosine, row) in enumerate(zip(cosines, candidates, strict=True)):
        free = ~used[row]
        if not bool(free.any()):  # all points are compared once more, for this centroid alone
            cosine = highest_cosine(points, centroids[k : k + 1]).cpu()
            row, free = torch.arange(len(points)), ~used
        first = cosine.masked_fill(~free, -torch.inf).argmax()
        rows.append(row[first])
        score.append(cosine[first])
        used[rows[-1]] = True
    return torch.stack(rows), torch.stack(score)


def nearest_points(points: GatheredRows, centroids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the highest cosines [K, count] of each centroid and the rows [K, count] of these points."""
    cosine = torch.full((len(centroids), count), -torch.inf, device=points.device)
    row = torch.zeros(len(centroids), count, dtype=torch.int64, device=points.device)
    every = torch.arange(len(points), device=points.device)
    for part in blocks(len(points), max(centroids.shape), points.device):
        merged = torch.cat([cosine, centroids @ points[every[part]].T], dim=1)
        rows = torch.cat([row, every[part].expand(len(centroids), -1)], dim=1)
        cosine, best = merged.topk(count, dim=1)
        row = rows.gather(1, best)
    return cosine, row
