"""Class balance of the initial pool: frequencies of a long tail, and apportionment to given frequencies."""

import torch
from torch import Tensor


def apportionment_order(labels: Tensor, frequency: Tensor) -> Tensor:
    """Returns sort keys [N]: in their order, every prefix has the classes in proportion to `frequency` [classes].

    The k-th image of a class (from 0) is due at (k + 1/2) / frequency, the apportionment of Webster and Sainte-Lague:
    the class counts of any first n images are as proportional as whole numbers can be (ours); used-up classes drop out.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=len(frequency))
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return (rank + 0.5) / frequency[labels]


def geometric_frequencies(classes: int, ratio: float) -> Tensor:
    """Returns frequencies [classes] that fall geometrically from 1 to 1 / ratio, a long tail (Cui et al. 2019)."""
    return ratio ** (-torch.arange(classes, dtype=torch.float64) / max(classes - 1, 1))
