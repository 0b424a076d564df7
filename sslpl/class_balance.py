"""How often classes occur: falling frequencies, and an order that keeps to given shares."""

import torch
from torch import Tensor


def apportionment_order(labels: Tensor, frequency: Tensor) -> Tensor:
    """When each image's turn is [N], if classes [N] are to be met in proportion to their frequencies [classes].

    The k-th image of a class (from 0) is due at (k + 1/2) / frequency, the apportionment of Webster and Sainte-Lague:
    the counts of the first n turns are as proportional as whole numbers can be (ours); a used-up class is skipped.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=len(frequency))
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return (rank + 0.5) / frequency[labels]


def geometric_frequencies(classes: int, ratio: float) -> Tensor:
    """Frequencies [classes] that fall geometrically from 1 to 1 / ratio, as Cui et al. (2019) make long tails."""
    return ratio ** (-torch.arange(classes, dtype=torch.float64) / max(classes - 1, 1))
