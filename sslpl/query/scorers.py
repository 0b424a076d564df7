"""Uncertainty scorers: how much each unlabeled image is worth a label, higher is more."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.context import needs_module
from sslpl.types import QueryContext


def entropy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Entropy [U] of the class probabilities, in nats (Settles 2009)."""

    def of_rows(logits: Tensor) -> Tensor:
        log_probability = logits.double().log_softmax(dim=1)
        return -(log_probability.exp() * log_probability).sum(dim=1)

    return by_rows(of_rows, context.predictions.logits)


@needs_module
def predicted_loss(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Predicted loss [U] (Yoo and Kweon 2019)."""
    assert context.predictions.predicted_loss is not None
    return context.predictions.predicted_loss


def least_confidence(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """1 - the highest class probability [U] (Lewis and Gale 1994)."""
    return by_rows(lambda logits: 1 - class_probabilities(logits).amax(dim=1), context.predictions.logits)


def margin(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Negative difference [U] of the two highest class probabilities, -1 to 0 (Scheffer et al. 2001)."""
    return -probability_margins(context.predictions.logits)


def probability_margins(logits: Tensor) -> Tensor:
    """How far the highest class probability is above the second [N]; 1 with a single class."""

    def of_rows(logits: Tensor) -> Tensor:
        highest = class_probabilities(logits).topk(min(2, logits.shape[1]), dim=1).values
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


def class_probabilities(logits: Tensor) -> Tensor:
    """Class probabilities [U, classes]."""
    return logits.double().softmax(dim=1)
