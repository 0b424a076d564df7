"""Selective clustering: selects the highest score of each complete-linkage cluster (SCAL, SSLPM)."""

import torch
from torch import Generator, Tensor

from sslpl.clustering.linkage import complete_linkage
from sslpl.query.context import needs_clusters
from sslpl.query.selection import ranked


@needs_clusters
def selective_clustering(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:
    """Selects the highest score of each of n complete-linkage clusters of the `candidates` highest (SCAL, SSLPM).

    The pairwise distances of the candidates are held in float32: memory grows with the square of `candidates`, not of
    the pool (`complete_linkage_bytes`). Raises MemoryError if they would not fit.
    """
    best = ranked(score, rng)[: max(candidates, n)]
    cluster = complete_linkage(embedding[best.to(embedding.device)], n).cpu()
    rank = torch.arange(len(best))
    first = torch.full((n,), len(best)).scatter_reduce(0, cluster, rank, "amin")
    return best[first.sort().values]
