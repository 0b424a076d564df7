"""UHerding: greedily covers the uncertain images by a Gaussian kernel (Bae et al. 2025)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from sslpl.calibration import calibrated_temperature
from sslpl.clustering.kernel_coverage import coverage, greedy_kernel_coverage, kernel_points
from sslpl.clustering.neighbors import blocks, on_grid
from sslpl.query.context import needs_subset, works_unlabeled
from sslpl.query.linear_probe import fit_linear_probe, with_bias
from sslpl.query.score_then_select import Scorer
from sslpl.query.scorers import class_entropy, lack_of_confidence, probability_margins
from sslpl.query.selection import check_not_negative, subsample
from sslpl.types import Count, Positive, QueryContext, Selection, ShareBelowOne

ClassUncertainty = Literal["margin", "entropy", "least_confidence"]
Uncertainty = Annotated[
    ClassUncertainty | Scorer,
    Field(description="margin, entropy or least_confidence, or a scorer as in query=uherding_expected_loss"),
]
HEAD_DECAY = 5e-4  # weight decay of the linear head, as in the training
HEAD_STEPS = 100  # of L-BFGS, at most
DUPLICATE = 2.0**-48  # squared distances of duplicates on the grid are below this


@needs_subset
@works_unlabeled
def uherding(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    uncertainty: Uncertainty = "margin",
    temperature: Positive | None = None,
    held_out: ShareBelowOne = 0.3,
    radius: Positive | None = None,
    subset: Count | None = None,
) -> Selection:
    """Selects one by one the image that raises the coverage of the unlabeled images, weighted by uncertainty, the most.

    UHerding (Bae et al. 2025), with the values of their code: MaxHerding weighted by 1 - margin of the class
    probabilities at a `temperature`, with a `radius` of the shortest distance between two different labeled images (1
    without). The temperature is, of 1 to 19.9, that of the lowest calibration error on the last `held_out` of the
    labels for a network trained on the others; here only a linear head over the current embeddings is trained on them
    (ours), and with less than one label held out it is 1. Without labels all weights are 1. The score is the rise of
    the weighted mean. Ties are broken at random. `subset` is as for MaxHerding.

    A scorer as `uncertainty` weights by its scores instead, for example by expected losses (ours); UserError if one is
    negative.
    """
    context = subsample(context, n, subset, rng)
    order = torch.randperm(len(context.unlabeled), generator=rng)
    rows = order.to(context.device)
    labeled = on_grid(context.labeled_predictions.embedding)
    points = kernel_points(on_grid(context.predictions.embedding[rows]))
    radius = smallest_distance(labeled) if radius is None else radius
    covered = coverage(points, kernel_points(labeled), radius)
    weight = torch.ones_like(covered)
    if len(labeled):
        weight = uncertainty_weights(context, rng, uncertainty, temperature, held_out)[rows]
    selected, gain = greedy_kernel_coverage(points, covered, weight, radius, n)
    return Selection(context.unlabeled[order[selected.cpu()]], gain.cpu() / len(order))


def uncertainty_weights(
    context: QueryContext,
    rng: Generator,
    uncertainty: ClassUncertainty | Scorer,
    temperature: float | None,
    held_out: float,
) -> Tensor:
    """Computes the weights [U] of the unlabeled images, in float64."""
    if callable(uncertainty):
        score = uncertainty(context, rng).to(context.device, torch.float64)
        check_not_negative(score, "query.uncertainty weights by the scores")
        return score
    temperature = head_temperature(context, held_out) if temperature is None else temperature
    return class_uncertainty(uncertainty, context.predictions.logits / temperature)


def class_uncertainty(uncertainty: ClassUncertainty, logits: Tensor) -> Tensor:
    """Computes the uncertainty [N] of the class probabilities, 0 if certain."""
    if uncertainty == "margin":
        return 1 - probability_margins(logits)
    return class_entropy(logits) if uncertainty == "entropy" else lack_of_confidence(logits)


def smallest_distance(points: Tensor) -> float:
    """Returns the shortest distance between two different points [N, D] in float64; 1 if there are no two."""
    least = torch.full((), torch.inf, dtype=points.dtype, device=points.device)
    square = points.square().sum(dim=1)
    for rows in blocks(len(points), len(points), points.device):
        squares = torch.addmm(square, points[rows], points.T, alpha=-2).add_(square[rows, None])
        least = torch.minimum(least, squares.masked_fill_(squares <= DUPLICATE, torch.inf).amin())
    return float(least.sqrt()) if bool(least.isfinite()) else 1.0


def head_temperature(context: QueryContext, held_out: float) -> float:
    """Returns the temperature that calibrates a linear head, trained on the first labels, on the last `held_out`."""
    kept_back = int(held_out * len(context.labels))
    if kept_back == 0:
        return 1.0
    embedding = context.labeled_predictions.embedding
    labels = context.labels.to(embedding.device)
    train = embedding[:-kept_back], labels[:-kept_back]
    weight = fit_linear_probe(*train, context.num_classes, HEAD_DECAY, HEAD_STEPS)
    return calibrated_temperature(with_bias(embedding[-kept_back:]) @ weight.T, labels[-kept_back:])
