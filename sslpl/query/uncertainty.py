"""Scorers of uncertainty: from the class probabilities, the gradient they imply, or how models of a run differ."""

from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_previous
from sslpl.query.disagreement import mutual_information, vote_entropy
from sslpl.query.neighbors import by_rows
from sslpl.types import Count, QueryContext


def least_confidence(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """1 - the highest class probability [U] (Lewis and Gale 1994)."""
    return by_rows(lambda logits: 1 - _probability(logits).amax(dim=1), context.predictions.logits)


def margin(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Negative difference [U] of the two highest class probabilities, -1 to 0 (Scheffer et al. 2001)."""
    return -margins(context.predictions.logits)


def margins(logits: Tensor) -> Tensor:
    """How far the highest class probability is above the second [N]; 1 with a single class."""

    def of_rows(logits: Tensor) -> Tensor:
        highest = _probability(logits).topk(min(2, logits.shape[1]), dim=1).values
        return highest[:, 0] - highest[:, 1:].sum(dim=1)

    return by_rows(of_rows, logits)


def ratio(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Second highest class probability over the highest [U], 0 to 1 (ratio of confidence: Monarch 2021).

    With a single class it is 0.
    """

    def of_rows(logits: Tensor) -> Tensor:
        highest = logits.double().topk(min(2, logits.shape[1]), dim=1).values
        return (highest[:, 1:] - highest[:, :1]).exp().sum(dim=1)

    return by_rows(of_rows, context.predictions.logits)


def expected_gradient_length(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Expected norm [U] of the cross-entropy's gradient, the class being what the model predicts (Settles et al. 2008).

    Over weights and bias of the linear head alone (ours): with the class y the gradient is (p - e_y) x (h, 1), so that
    no backward pass is needed.
    """

    def of_rows(logits: Tensor, embedding: Tensor) -> Tensor:
        probability = _probability(logits)
        residual = (probability.square().sum(dim=1, keepdim=True) - 2 * probability + 1).clamp(min=0).sqrt()
        inputs = (embedding.double().square().sum(dim=1) + 1).sqrt()
        return (probability * residual).sum(dim=1) * inputs

    return by_rows(of_rows, context.predictions.logits, context.predictions.embedding)


@needs_previous
def temporal_output_discrepancy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Distance [U] of the class probabilities from those of the cycle before, 0 to 2^0.5 (Huang et al., ICCV 2021).

    In the first cycle, whose predecessor has learned nothing, the nearest count most: negative distance (its code).
    """

    def of_rows(now: Tensor, before: Tensor) -> Tensor:
        return (_probability(now) - _probability(before)).square().sum(dim=1).sqrt()

    distance = by_rows(of_rows, context.predictions.logits, context.previous.logits)
    return -distance if context.cycle == 0 else distance


def query_by_committee(
    context: QueryContext,
    rng: Generator,  # noqa: ARG001
    *,
    snapshots: Count = 5,  # noqa: ARG001  # read by `needs`: the training keeps so many
    disagreement: Literal["vote_entropy", "consensus_kl"] = "consensus_kl",
) -> Tensor:
    """Disagreement [U], in nats, of snapshots of the training (Seung et al. 1992)."""
    measure = {"vote_entropy": vote_entropy, "consensus_kl": mutual_information}[disagreement]

    def of_rows(*logits: Tensor) -> Tensor:
        return measure(torch.stack(logits, dim=1).double().log_softmax(dim=2))

    return by_rows(of_rows, *(member.logits for member in context.committee))


def _probability(logits: Tensor) -> Tensor:
    """Class probabilities [U, classes]."""
    return logits.double().softmax(dim=1)
