"""Uncertainty scorers: a higher score means a more informative image."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.context import needs_module
from sslpl.types import QueryContext


def entropy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes the entropy [U] of the class probabilities, in nats (Settles 2009)."""
    return class_entropy(context.predictions.logits)


def class_entropy(logits: Tensor) -> Tensor:
    """Computes the entropy [N] of the class probabilities, in nats."""

    def of_rows(logits: Tensor) -> Tensor:
        log_probability = logits.double().log_softmax(dim=1)
        return -(log_probability.exp() * log_probability).sum(dim=1)

    return by_rows(of_rows, logits)


@needs_module
def predicted_loss(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Returns the predicted loss [U] (Yoo and Kweon 2019)."""
    assert context.predictions.predicted_loss is not None
    return context.predictions.predicted_loss


@needs_module
def expected_loss(context: QueryContext, rng: Generator) -> Tensor:
    """Computes the expected loss [U] that predicted losses imply, as a share of the highest, 0 to 1 (ours).

    Predicted losses are trained to rank: sigmoid(p_i - p_j) is the probability that image i has the higher loss. If
    losses are exponentially distributed, with means m, that probability is m_i / (m_i + m_j), so that m is exp(p) up to
    a factor. Unlike p it can be summed and weighted.
    """
    score = predicted_loss(context, rng).double()
    relative: Tensor = (score - score.amax()).exp()
    return relative


def least_confidence(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes 1 - the highest class probability [U] (Lewis and Gale 1994)."""
    return lack_of_confidence(context.predictions.logits)


def lack_of_confidence(logits: Tensor) -> Tensor:
    """Computes 1 - the highest class probability [N]."""
    return by_rows(lambda logits: 1 - class_probabilities(logits).amax(dim=1), logits)


def margin(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes the negative difference [U] of the two highest class probabilities, -1 to 0 (Scheffer et al. 2001)."""
    return -probability_margins(context.predictions.logits)


def probability_margins(logits: Tensor) -> Tensor:
    """Computes the difference [N] of the two highest class probabilities; 1 with a single class."""

    def of_rows(logits: Tensor) -> Tensor:
        highest = class_probabilities(logits).topk(min(2, logits.shape[1]), dim=1).values
        return highest[:, 0] - highest[:, 1:].sum(dim=1)

    return by_rows(of_rows, logits)


def ratio(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes the ratio [U] of the second highest class probability to the highest, 0 to 1 (Monarch 2021).

    With a single class it is 0.
    """

    def of_rows(logits: Tensor) -> Tensor:
        highest = logits.double().topk(min(2, logits.shape[1]), dim=1).values
        return (highest[:, 1:] - highest[:, :1]).exp().sum(dim=1)

    return by_rows(of_rows, context.predictions.logits)


def class_probabilities(logits: Tensor) -> Tensor:
    """Computes class probabilities [U, classes] in float64."""
    return logits.double().softmax(dim=1)
