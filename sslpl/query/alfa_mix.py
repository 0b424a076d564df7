"""ALFA-Mix: images whose prediction changes when their embedding is mixed with a class's (Parvaneh et al. 2022)."""

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize, one_hot

from sslpl.clustering.neighbors import blocks
from sslpl.query.candidates import diverse_candidates
from sslpl.query.context import needs_faiss
from sslpl.query.head import linear_head
from sslpl.types import Positive, QueryContext, Selection

SAME = 1e-8  # added to the difference of a coordinate, as in the published code: equal coordinates are not changed


@needs_faiss
def alfa_mix(context: QueryContext, n: int, rng: Generator, *, step: Positive = 0.2) -> Selection:
    """Selects from the images that a little of another class's mean embedding moves to another predicted class.

    Parvaneh et al., CVPR 2022, in the closed form of their code: an embedding is mixed with the mean of the labeled
    embeddings of each class (a class without labels: of all) by the alpha of bounded norm that raises the loss of the
    predicted class the most to first order. The bound is `step` / dimensions^0.5, as in the published command, and
    grows by a `step` while it is below 1 and there are at most n candidates. The candidates nearest to the centroids
    of k-means over their normalized embeddings are selected.
    """
    return diverse_candidates(context, mixing_candidates(context, n, step), n, rng)


def mixing_candidates(context: QueryContext, n: int, step: float) -> Tensor:
    """Returns a mask [U] of the images whose predicted class changes, at the first bound with more than n of them."""
    head = linear_head(context.backbone)
    anchors = class_anchors(context.labeled_predictions.embedding, context.labels, context.num_classes)
    bounds = mixing_bounds(step)
    first = torch.empty(len(context.unlabeled), dtype=torch.int64, device=context.device)
    _, logits, embedding, _ = context.predictions
    for rows in blocks(len(first), 4 * embedding.shape[1], first.device):
        first[rows] = first_change(head, embedding[rows], logits[rows], anchors, bounds)
    below = [int((first <= bound).sum()) for bound in range(len(bounds))]
    last = next((bound for bound, candidates in enumerate(below) if candidates > n), len(bounds) - 1)
    return first <= last


def mixing_bounds(step: float) -> list[float]:
    """Returns the bounds step, 2 x step, ... until one is at least 1."""
    bounds = [step]
    while bounds[-1] < 1:
        bounds.append(bounds[-1] + step)
    return bounds


def class_anchors(embedding: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the mean embedding [C, D] of each class; of all images for a class without images."""
    member = one_hot(labels.to(embedding.device), classes).to(embedding.dtype)
    count = member.sum(dim=0)[:, None]
    return torch.where(count > 0, member.T @ embedding / count.clamp(min=1), embedding.mean(dim=0))


@torch.no_grad()
def first_change(head: nn.Linear, embedding: Tensor, logits: Tensor, anchors: Tensor, bounds: list[float]) -> Tensor:
    """Returns the position [N] of the first bound at which mixing changes the predicted class; len(bounds) if none.

    With z = anchor - h and the gradient g of the loss, h + alpha z is h + bound / D^0.5 |z| g / |g| where z is not 0.
    """
    predicted, weight = logits.argmax(dim=1), head.weight.double()
    residual = logits.double().softmax(dim=1) - one_hot(predicted, logits.shape[1])
    gradient, points = normalize(residual @ weight, eps=torch.finfo(torch.float64).tiny), embedding.double()
    first = torch.full_like(predicted, len(bounds))
    for anchor in anchors.double():
        difference = anchor - points
        length = difference.norm(dim=1, keepdim=True) / points.shape[1] ** 0.5
        change = (gradient * length * (difference / (difference + SAME))) @ weight.T
        for position, bound in reversed(list(enumerate(bounds))):
            changed = (logits + bound * change).argmax(dim=1) != predicted
            first[changed] = first[changed].clamp(max=position)
    return first
