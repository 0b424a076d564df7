"""Scorers: how much each unlabeled image is worth a label, higher is more."""

from torch import Generator, Tensor

from sslpl.query.context import needs_module
from sslpl.types import QueryContext


def entropy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Entropy [U] of the class probabilities, in nats (Settles 2009)."""
    log_probability = context.predictions.logits.double().log_softmax(dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1)


@needs_module
def predicted_loss(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Predicted loss [U] (Yoo and Kweon 2019)."""
    assert context.predictions.predicted_loss is not None
    return context.predictions.predicted_loss
