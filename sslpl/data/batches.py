"""Which images make a batch."""

import torch
from torch import Generator, Tensor

from sslpl.seeds import shuffled


def split(order: Tensor, batch_size: int) -> list[Tensor]:
    """Batches in order; a last batch of one image joins the one before, for batch norm cannot train on it."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2:] = [order[-len(batches[-2]) - 1 :]]
    return batches


def epoch_batches(index: Tensor, pool_size: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """One shuffled pass over `index`."""
    return split(shuffled(index, pool_size, generator), batch_size)


def unlabeled_batch_size(unlabeled: int, labeled: int, batch_size: int, limit: int = 1536) -> int:
    """The even size that makes a pass over the labeled set one over the unlabeled set too (SSLPM's code)."""
    return min(unlabeled // (labeled // batch_size + 1) // 2 * 2, limit)
