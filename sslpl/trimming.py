"""Trimming: the lowest-loss labeled images are excluded from the next joint training."""

import torch
from torch import Tensor


def trim_size(initial_size: int) -> int:
    """Returns the number of excluded images: 1 % of the initial pool, rounded down to even (SSLPM's code)."""
    return initial_size // 100 // 2 * 2


def trimmed_positions(index: Tensor, loss: Tensor, new_index: Tensor, new_loss: Tensor, initial_size: int) -> Tensor:
    """Returns the positions to exclude: the lowest losses, half among old, half among new labels (SSLPM's code)."""
    half = trim_size(initial_size) // 2
    easiest = index[torch.argsort(loss, stable=True)[:half]]
    easiest_new = new_index[torch.argsort(new_loss, stable=True)[:half]]
    return torch.cat([easiest, easiest_new])
