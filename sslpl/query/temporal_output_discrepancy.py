"""Temporal output discrepancy (Huang et al., ICCV 2021)."""

from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.context import needs_previous
from sslpl.query.scorers import class_probabilities
from sslpl.types import QueryContext


@needs_previous
def temporal_output_discrepancy(context: QueryContext, rng: Generator) -> Tensor:  # noqa: ARG001
    """Distance [U] of the class probabilities from those of the cycle before, 0 to 2^0.5 (Huang et al., ICCV 2021).

    In the first cycle, whose predecessor has learned nothing, the nearest count most: negative distance (its code).
    The predecessor is then the run's own initial weights, in its code an independent random network.
    """

    def of_rows(now: Tensor, before: Tensor) -> Tensor:
        return (class_probabilities(now) - class_probabilities(before)).square().sum(dim=1).sqrt()

    distance = by_rows(of_rows, context.predictions.logits, context.previous.logits)
    return -distance if context.cycle == 0 else distance
