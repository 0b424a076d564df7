"""Selectors: choose n images from their scores and embeddings."""

import torch
from torch import Generator, Tensor

from sslpl.query.selection import check_not_negative, ranked
from sslpl.types import Positive


def top(score: Tensor, embedding: Tensor, n: int, candidates: int, rng: Generator) -> Tensor:  # noqa: ARG001
    """Selects the n highest scores."""
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
    """Draws n images without replacement, in proportion to score ^ beta (Kirsch et al. 2023: beta 1, with BALD).

    They are the n highest of beta x log score + Gumbel noise; images of score 0 come last. UserError for a negative
    score.
    """
    check_not_negative(score, "query/selector=power draws in proportion to the scores")
    return ranked(beta * score.cpu().double().log() + gumbel_noise(score.shape, rng), rng)[:n]


def gumbel_noise(shape: torch.Size, rng: Generator) -> Tensor:
    """Draws standard Gumbel noise, in float64."""
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=rng).log()
