"""The next step of a greedy selection whose gains only fall: lazy evaluation (Minoux 1978)."""

from collections.abc import Callable

import torch
from torch import Tensor

FIRST_CANDIDATES = 32  # gains that are computed together; three times as many if the highest may be another one


def row_of_highest_gain(bound: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the row [1] of the highest gain, of equal ones the first; lowers the upper bounds [N] on the way.

    `gain` computes the gains [K] of rows [K], none above its bound, and is only asked for rows that may have the
    highest. Rows with a negative bound are never returned.
    """
    unknown, count = bound > 0, FIRST_CANDIDATES  # a gain whose bound is 0 is known
    highest = torch.zeros_like(bound[:1])
    while len(candidates := (unknown & (bound >= highest)).nonzero()[:, 0]) > 0:
        candidates = candidates[bound[candidates].topk(min(count, len(candidates))).indices]
        bound[candidates] = gain(candidates)
        unknown[candidates] = False
        highest, count = torch.maximum(highest, bound[candidates].max()), 3 * count
    return bound.masked_fill(unknown, -1).argmax(dim=0, keepdim=True)
