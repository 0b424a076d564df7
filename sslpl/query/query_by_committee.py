"""Query by committee: snapshots of the training disagree (Seung et al. 1992)."""

from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import by_rows
from sslpl.query.disagreement import mutual_information, vote_entropy
from sslpl.types import Count, QueryContext


def query_by_committee(
    context: QueryContext,
    rng: Generator,  # noqa: ARG001
    *,
    snapshots: Count = 5,  # noqa: ARG001  # read by `needs`: the training keeps so many
    disagreement: Literal["vote_entropy", "consensus_kl"] = "consensus_kl",
) -> Tensor:
    """Disagreement [U], in nats, of snapshots of the training (Seung et al. 1992).

    They are as many as the separately trained networks in the ensembles of Beluch et al. 2018.
    """
    measure = {"vote_entropy": vote_entropy, "consensus_kl": mutual_information}[disagreement]

    def of_rows(*logits: Tensor) -> Tensor:
        return measure(torch.stack(logits, dim=1).double().log_softmax(dim=2))

    return by_rows(of_rows, *(member.logits for member in context.committee))
