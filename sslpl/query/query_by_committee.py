"""Query by committee: disagreement of training snapshots (Seung et al. 1992)."""

from typing import Literal

from torch import Generator, Tensor

from sslpl.query.disagreement import committee_disagreement, mutual_information, vote_entropy
from sslpl.types import Count, QueryContext


def query_by_committee(
    context: QueryContext,
    rng: Generator,  # noqa: ARG001
    *,
    snapshots: Count = 5,  # noqa: ARG001  # read by `needs`: how many the training keeps
    disagreement: Literal["vote_entropy", "consensus_kl"] = "consensus_kl",
) -> Tensor:
    """Computes the disagreement [U], in nats, of training snapshots (Seung et al. 1992).

    The default is as many as the separately trained networks in the ensembles of Beluch et al. 2018.
    """
    measure = {"vote_entropy": vote_entropy, "consensus_kl": mutual_information}[disagreement]
    return committee_disagreement(context.committee, measure)
