"""Selectors: which of the scored images to take, so that they are worth a label together."""

import torch
from torch import Generator, Tensor

from sslpl.query.linkage import complete_linkage


def ranked(score: Tensor, rng: Generator) -> Tensor:
    """Positions [N] from the highest score to the lowest, ties in random order."""
    order = torch.randperm(len(score), generator=rng)
    return order[torch.argsort(score.cpu()[order], descending=True, stable=True)]


def top(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:  # noqa: ARG001
    """The n highest scores."""
    return ranked(score, rng)[:n]


def selective_clustering(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:
    """The highest score of each of n complete-linkage clusters of the `candidates` highest (SCAL, SSLPM)."""
    best = ranked(score, rng)[: max(candidates, n)]
    cluster = complete_linkage(embedding[best.to(embedding.device)], n).cpu()
    rank = torch.arange(len(best))
    first = torch.full((n,), len(best)).scatter_reduce(0, cluster, rank, "amin")
    return best[first.sort().values]
