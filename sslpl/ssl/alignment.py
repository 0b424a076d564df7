"""Distribution alignment: pseudo-labels rescaled to a class distribution (ReMixMatch: Berthelot et al. 2020)."""

import torch
from torch import Tensor, nn

TINY = 1e-6  # of the published codes


def aligned_to(wanted: Tensor, probabilities: Tensor, marginal: Tensor) -> Tensor:
    """Returns probabilities [B, classes] times `wanted` over `marginal`, both [classes], normalized."""
    ratio = probabilities * (wanted + TINY) / (marginal + TINY)
    return ratio / ratio.sum(dim=1, keepdim=True)


def update_marginal(marginal: Tensor, probabilities: Tensor, momentum: float) -> None:
    """Averages the mean of probabilities [B, classes] into `marginal` [classes], in place.

    The first batch is the average; a marginal of zeros has seen none.
    """
    decay = momentum * marginal.any()
    marginal.copy_(decay * marginal + (1 - decay) * probabilities.mean(dim=0))


class RecentAlignment(nn.Module):
    """Aligns to the uniform distribution by the mean over the latest batches (CoMatch: Li et al. 2021)."""

    means: Tensor  # [batches, classes]; zeros where there has been no batch yet
    seen: Tensor  # [] int64, the number of batches so far

    def __init__(self, classes: int, batches: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(batches, classes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, probabilities: Tensor) -> Tensor:
        """Adds a batch [B, classes] to the latest ones and returns it aligned."""
        self.means.index_copy_(0, (self.seen % len(self.means))[None], probabilities.mean(dim=0)[None])
        self.seen += 1
        classes = probabilities.shape[1]
        return aligned_to(torch.full_like(self.means[0], 1 / classes), probabilities, self.means.mean(dim=0))
