"""Multinomial logistic regression on embeddings: a linear head retrained from scratch in a moment."""

from functools import partial

from torch import Tensor
from torch.nn.functional import pad

from sslpl.clustering.neighbors import by_rows
from sslpl.softmax_regression import fit_softmax_regression

TOLERANCE = 1e-6  # of the largest gradient


def fit_linear_probe(
    embedding: Tensor, labels: Tensor, classes: int, weight_decay: float, steps: int, start: Tensor | None = None
) -> Tensor:
    """Returns the weights [C, D + 1] in float64, the bias last, of a head fitted to embeddings [N, D] by L-BFGS.

    Minimizes the mean cross-entropy + `weight_decay` / 2 x the squared weights, as weight decay does in SGD. The
    objective is convex: `start` [C, D + 1] only saves some of the at most `steps` iterations.
    """
    inputs = with_bias(embedding)
    penalty = inputs.new_full((inputs.shape[1],), weight_decay)
    first = inputs.new_zeros(classes, inputs.shape[1]) if start is None else start
    return fit_softmax_regression(inputs, labels, penalty, first, steps, TOLERANCE)


def predicted_classes(weight: Tensor, embedding: Tensor) -> Tensor:
    """Returns the most likely class [N] of embeddings [N, D] by a fitted head."""
    return (with_bias(embedding) @ weight.T).argmax(dim=1)


def probe_accuracy(weight: Tensor, embedding: Tensor, truth: Tensor) -> float:
    """Returns the share of embeddings [N, D] whose class a fitted head predicts; 0 for none."""
    if len(truth) == 0:
        return 0.0
    return float((by_rows(partial(predicted_classes, weight), embedding) == truth).double().mean())


def with_bias(embedding: Tensor) -> Tensor:
    """Returns embeddings with a last coordinate of 1 [N, D + 1], in float64."""
    return pad(embedding.double(), (0, 1), value=1.0)
