"""Temporal output discrepancy (Huang et al., ICCV 2021)."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.context import needs_previous
from sslpl.query.scorers import class_probabilities
from sslpl.types import QueryContext


@needs_previous
def temporal_output_discrepancy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Computes the distance [U] of class probabilities from the last cycle's, 0 to 2^0.5 (Huang et al., ICCV 2021).

    In cycle 0 the score is the negative distance, as in the published code, and the previous network is the run's own
    initial weights, where the published code has an independent random network.
    """

    def block_distance(current: Tensor, previous: Tensor) -> Tensor:
        return (class_probabilities(current) - class_probabilities(previous)).square().sum(dim=1).sqrt()

    distance = by_rows(block_distance, context.predictions.logits, context.previous.logits)
    return -distance if context.cycle == 0 else distance
