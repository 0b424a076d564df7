"""The disagreement of an ensemble of separately trained networks (Beluch et al. 2018)."""

from typing import Literal

from torch import Generator, Tensor

from sslpl.query.disagreement import committee_disagreement, mutual_information, vote_entropy, vote_variation
from sslpl.types import QueryContext, Several


def ensemble(
    context: QueryContext,
    rng: Generator,  # noqa: ARG001
    *,
    members: Several = 5,  # noqa: ARG001  # read by `needs`: how many networks each cycle trains
    disagreement: Literal["variation_ratio", "vote_entropy", "consensus_kl"] = "variation_ratio",
) -> Tensor:
    """Computes the disagreement [U] of separately trained networks; defaults as in Beluch et al. 2018.

    The variation ratio is the share of networks outside the modal class (Freeman 1965); the others are in nats.
    """
    measures = {"variation_ratio": vote_variation, "vote_entropy": vote_entropy, "consensus_kl": mutual_information}
    return committee_disagreement(context.committee, measures[disagreement])
