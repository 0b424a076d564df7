"""Scorers: how much each unlabeled image is worth a label, higher is more."""

from torch import Generator, Tensor

from sslpl.query.context import needs_module
from sslpl.query.neighbors import by_rows
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
