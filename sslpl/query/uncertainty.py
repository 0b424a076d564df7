"""Scorers of uncertainty: from the class probabilities, the gradient they imply, or how models of a run differ."""

from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_previous
from sslpl.query.disagreement import mutual_information, vote_entropy
from sslpl.types import Count, QueryContext


def least_confidence(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """1 - the highest class probability [U] (Lewis and Gale 1994)."""
    return 1 - _probability(context.predictions.logits).amax(dim=1)


def margin(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Negative difference [U] of the two highest class probabilities, -1 to 0 (Scheffer et al. 2001)."""
    return -margins(context.predictions.logits)


def margins(logits: Tensor) -> Tensor:
    """How far the highest class probability is above the second [N]; 1 with a single class."""
    highest = _probability(logits).topk(min(2, logits.shape[1]), dim=1).values
    return highest[:, 0] - highest[:, 1:].sum(dim=1)


def ratio(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Second highest class probability over the highest [U], 0 to 1 (ratio of confidence: Monarch 2021)."""
    first, second = context.predictions.logits.double().topk(2, dim=1).values.unbind(dim=1)
    return (second - first).exp()


def expected_gradient_length(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Expected norm [U] of the cross-entropy's gradient, the class being what the model predicts (Settles et al. 2008).

    Over weights and bias of the linear head alone (ours): with the class y the gradient is (p - e_y) x (h, 1), so that
    no backward pass is needed.
    """
    known = context.predictions
    probability = _probability(known.logits)
    residual = (probability.square().sum(dim=1, keepdim=True) - 2 * probability + 1).clamp(min=0).sqrt()
    inputs = (known.embedding.double().square().sum(dim=1) + 1).sqrt()
    return (probability * residual).sum(dim=1) * inputs


@needs_previous
def temporal_output_discrepancy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Distance [U] of the class probabilities from those of the cycle before, 0 to 2^0.5 (Huang et al., ICCV 2021).

    In the first cycle, whose predecessor has learned nothing, the nearest count most: negative distance (its code).
    """
    now, before = (_probability(known.logits) for known in (context.predictions, context.previous))
    distance = (now - before).square().sum(dim=1).sqrt()
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
    logits = torch.stack([member.logits for member in context.committee], dim=1)
    return torch.cat([measure(part.double().log_softmax(dim=2)) for part in torch.split(logits, 4096)])


def _probability(logits: Tensor) -> Tensor:
    """Class probabilities [U, classes]."""
    return logits.double().softmax(dim=1)
