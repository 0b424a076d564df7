"""Selectors: which of the scored images to take, so that they are worth a label together."""

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_clusters
from sslpl.query.linkage import complete_linkage
from sslpl.types import Positive, UserError


def ranked(score: Tensor, rng: Generator) -> Tensor:
    """Positions [N] from the highest score to the lowest, ties in random order."""
    order = torch.randperm(len(score), generator=rng)
    return order[torch.argsort(score.cpu()[order], descending=True, stable=True)]


def top(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:  # noqa: ARG001
    """The n highest scores."""
    return ranked(score, rng)[:n]


def power(
    score: Tensor,
    embedding: Tensor,  # noqa: ARG001
    n: int,
    candidates: int,  # noqa: ARG001
    rng: Generator,
    *,
    beta: Positive = 1.0,
) -> Tensor:
    """n images drawn without replacement, in proportion to score ^ beta (Kirsch et al. 2023: beta 1, with BALD).

    Drawn as the n highest of beta x log score + Gumbel noise; an image of score 0 comes last. UserError for a score
    below 0.
    """
    if bool((score < 0).any()):
        raise UserError("query/selector=power draws in proportion to the scores: choose a scorer without negative ones")
    noise = -torch.empty(len(score), dtype=torch.float64).exponential_(generator=rng).log()
    return ranked(beta * score.cpu().double().log() + noise, rng)[:n]


@needs_clusters
def selective_clustering(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:
    """The highest score of each of n complete-linkage clusters of the `candidates` highest (SCAL, SSLPM).

    The distances of all pairs of candidates are held, in float32: memory grows with the square of `candidates`, not of
    the pool (`complete_linkage_bytes`), and a clustering that would not fit is refused with a MemoryError.
    """
    best = ranked(score, rng)[: max(candidates, n)]
    cluster = complete_linkage(embedding[best.to(embedding.device)], n).cpu()
    rank = torch.arange(len(best))
    first = torch.full((n,), len(best)).scatter_reduce(0, cluster, rank, "amin")
    return best[first.sort().values]
