"""Expected gradient length (Settles et al. 2008)."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.scorers import class_probabilities
from sslpl.types import QueryContext


def expected_gradient_length(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Expected norm [U] of the cross-entropy's gradient, the class being what the model predicts (Settles et al. 2008).

    Over weights and bias of the linear head alone (ours): with the class y the gradient is (p - e_y) x (h, 1), so that
    no backward pass is needed.
    """

    def of_rows(logits: Tensor, embedding: Tensor) -> Tensor:
        probability = class_probabilities(logits)
        residual = (probability.square().sum(dim=1, keepdim=True) - 2 * probability + 1).clamp(min=0).sqrt()
        inputs = (embedding.double().square().sum(dim=1) + 1).sqrt()
        return (probability * residual).sum(dim=1) * inputs

    return by_rows(of_rows, context.predictions.logits, context.predictions.embedding)
