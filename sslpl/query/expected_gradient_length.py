"""Expected gradient length (Settles et al. 2008)."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.scorers import class_probabilities
from sslpl.types import QueryContext


def expected_gradient_length(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes the expected norm [U] of the cross-entropy gradient under the predicted classes (Settles et al. 2008).

    Only the weights and bias of the linear head count (ours): for class y their gradient is (p - e_y) x (h, 1), so that
    no backward pass is needed.
    """

    def block_lengths(logits: Tensor, embedding: Tensor) -> Tensor:
        probability = class_probabilities(logits)
        residual = (probability.square().sum(dim=1, keepdim=True) - 2 * probability + 1).clamp(min=0).sqrt()
        inputs = (embedding.double().square().sum(dim=1) + 1).sqrt()
        return (probability * residual).sum(dim=1) * inputs

    return by_rows(block_lengths, context.predictions.logits, context.predictions.embedding)
