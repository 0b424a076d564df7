"""An oracle baseline that selects one image at a time, by the error of a ridge classifier with it (ours)."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from sslpl.clustering.neighbors import blocks
from sslpl.query.context import needs_subset
from sslpl.query.linear_probe import with_bias
from sslpl.query.selection import hold_out, subsample
from sslpl.types import Count, Positive, QueryContext, Selection

IN_CACHE = 16  # blocks of this fraction of the usual size stay in the cache of a processor


class RidgeClassifier(NamedTuple):
    """A ridge regression of one-hot classes, as it acts on U candidates and on E images to evaluate it on."""

    inverse: Tensor  # [D, D], A^-1 = (regularization x I + the sum of x x' over the training images)^-1
    cross: Tensor  # [E, U], x A^-1 x' of evaluated images and candidates
    leverage: Tensor  # [U], x A^-1 x' of the candidates
    predicted: Tensor  # [U, C], outputs for the candidates
    evaluated: Tensor  # [E, C], outputs for the evaluated images


@needs_subset
def greedy_oracle(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    regularization: Positive = 1.0,
    evaluated: Count = 2000,
    subset: Count | None = 2000,
    oracle_baseline: bool = False,  # noqa: ARG001  # read by `needs`
) -> Selection:
    """Selects one by one the image whose true label lowers the error of a classifier the most (ours).

    The classifier is a ridge regression of the one-hot classes on the embeddings, to which an image is added in closed
    form, so that each of the `subset` random candidates (at least 2 n; None: all) is tried in every step. The error is
    that on `evaluated` random images, at most half of the pool, which are not candidates; ties: the squared error, then
    the generator. The score is the accuracy on these after each addition. A step costs O(candidates x evaluated x
    classes), and candidates x evaluated numbers are held.
    """
    truth, embedding = context.hidden_labels().to(context.device), context.predictions.embedding
    held_out, pool = hold_out(context, n, evaluated, rng)
    pool = subsample(pool, n, None if subset is None else max(subset, 2 * n), rng)
    index = pool.unlabeled[torch.randperm(len(pool.unlabeled), generator=rng)]  # so that argmin breaks ties at random
    rows = torch.searchsorted(context.unlabeled, index).to(context.device)
    candidates, targets = with_bias(embedding[rows]), one_hot(truth[rows], context.num_classes).double()
    test, test_truth = with_bias(embedding[held_out]), truth[held_out]
    known, labels = with_bias(context.labeled_predictions.embedding), context.labels.to(context.device)
    state = start_ridge(known, one_hot(labels, context.num_classes).double(), candidates, test, regularization)
    chosen: list[int] = []
    scores: list[float] = []
    for _ in range(n):
        errors = errors_with(state, targets, test_truth)
        errors[chosen] = torch.inf
        best = int(errors.argmin())
        state = add_image(state, candidates, targets, best)
        chosen.append(best)
        scores.append(float((state.evaluated.argmax(dim=1) == test_truth).double().mean()))
    return Selection(index[chosen], torch.tensor(scores, dtype=torch.float64))


def start_ridge(
    inputs: Tensor, targets: Tensor, candidates: Tensor, test: Tensor, regularization: float
) -> RidgeClassifier:
    """Returns the classifier of inputs [L, D] and targets [L, C], for candidates [U, D] and evaluated images [E, D]."""
    gram = inputs.T @ inputs
    gram.diagonal().add_(regularization)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weight = inverse @ (inputs.T @ targets)
    leverage = ((candidates @ inverse) * candidates).sum(dim=1)
    return RidgeClassifier(inverse, test @ inverse @ candidates.T, leverage, candidates @ weight, test @ weight)


def add_image(state: RidgeClassifier, candidates: Tensor, targets: Tensor, row: int) -> RidgeClassifier:
    """Adds the candidate at a row with its target, by the Sherman-Morrison formula."""
    inverse, cross, leverage, predicted, evaluated = state
    direction, scale = inverse @ candidates[row], 1 + leverage[row]
    residual = (targets[row] - predicted[row]) / scale
    on_candidates, on_test = candidates @ direction, cross[:, row]
    return RidgeClassifier(
        inverse - torch.outer(direction, direction / scale),
        torch.addr(cross, on_test, on_candidates / scale, alpha=-1),
        leverage - on_candidates.square() / scale,
        predicted + torch.outer(on_candidates, residual),
        evaluated + torch.outer(on_test, residual),
    )


def errors_with(state: RidgeClassifier, targets: Tensor, truth: Tensor) -> Tensor:
    """Counts the errors [U] on the evaluated images with each candidate added, plus squared error / (1 + it)."""
    errors = torch.empty_like(state.leverage)
    residual = (targets - state.predicted) / (1 + state.leverage)[:, None]
    missing = state.evaluated - one_hot(truth, targets.shape[1])
    right = state.evaluated.gather(1, truth[:, None])
    for rows in blocks(len(errors), IN_CACHE * len(truth), errors.device):
        change, step = state.cross[:, rows], residual[rows]  # [E, B], [B, C]
        highest = torch.full_like(change, -torch.inf)
        for output, of_class in zip(state.evaluated.T, step.T, strict=True):  # in turn: no [E, B, C]
            torch.maximum(highest, torch.addcmul(output[:, None], change, of_class), out=highest)
        wrong = (highest > torch.addcmul(right, change, step.T[truth])).sum(dim=0)
        squared = missing.square().sum() + 2 * ((change.T @ missing) * step).sum(dim=1)
        squared = (squared + change.square().sum(dim=0) * step.square().sum(dim=1)).clamp(min=0)
        errors[rows] = wrong + squared / (1 + squared)
    return errors
