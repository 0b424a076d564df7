"""Trimming: which labeled images the next joint training excludes."""

import torch
from torch import Tensor


def trim_size(initial_size: int) -> int:
    """How many images the trimming leaves out: one in a hundred of the initial pool, even (SSLPM's code)."""
    return initial_size // 100 // 2 * 2


def trimmed_positions(index: Tensor, loss: Tensor, picked: Tensor, picked_loss: Tensor, initial_size: int) -> Tensor:
    """Positions that the next joint training leaves out: the easiest of the labeled and of the new (SSLPM's code)."""
    half = trim_size(initial_size) // 2
    easiest = index[torch.argsort(loss, stable=True)[:half]]
    easiest_new = picked[torch.argsort(picked_loss, stable=True)[:half]]
    return torch.cat([easiest, easiest_new])
