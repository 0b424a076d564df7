"""Stateful SSL methods: thresholds and weights that adapt to the predictions of the unlabeled images.

Each is built anew for the fine-tune of a cycle and called with the weak logits [B, classes] of a batch and the indices
of its images among the unlabeled ones, [B] in 0..num_images-1. Thresholds apply to the highest class probability.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sslpl.ssl.alignment import TINY, update_marginal
from sslpl.types import Positive, PseudoLabel, Share, ShareBelowOne


class FlexMatch(nn.Module):
    """The most likely class, if it reaches a class-wise threshold (FlexMatch: Zhang et al. 2021, Algorithm 1).

    A class that fewer images have reached with confidence `threshold` has a lower threshold.
    """

    learned: Tensor  # [num_images] int64, the last class predicted with confidence `threshold`; -1: none

    def __init__(self, num_classes: int, num_images: int, threshold: Share = 0.95) -> None:
        super().__init__()
        self.num_classes, self.threshold = num_classes, threshold
        self.register_buffer("learned", torch.full((num_images,), -1))

    def forward(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """Returns pseudo-labels by the thresholds before this batch, then updates the state."""
        confidence, guess = weak_logits.float().softmax(dim=1).max(dim=1)
        weight = (confidence >= self.thresholds()[guess]).float()
        self.learned[index] = torch.where(confidence >= self.threshold, guess, self.learned[index])
        return PseudoLabel(one_hot(guess, self.num_classes).float(), weight)

    def thresholds(self) -> Tensor:
        """Returns the threshold of each class [classes]: `threshold` times x / (2 - x).

        x is the count of the class over the largest count, where images without a class yet count as one, too.
        """
        counts = self.learned.new_zeros(self.num_classes + 1).index_add_(
            0, self.learned + 1, torch.ones_like(self.learned)
        )
        share = counts[1:] / counts.max()
        return self.threshold * share / (2 - share)


class FreeMatch(nn.Module):
    """The most likely class, if it reaches an adaptive threshold (FreeMatch: Wang et al. 2023).

    The threshold is the averaged confidence, scaled down for classes that are predicted less often. Its fairness loss
    trains a backbone and does not apply to a frozen one.
    """

    level: Tensor  # [], averaged confidence
    marginal: Tensor  # [classes], averaged probabilities

    def __init__(self, num_classes: int, num_images: int, momentum: ShareBelowOne = 0.999) -> None:  # noqa: ARG002
        super().__init__()
        self.momentum = momentum
        self.register_buffer("level", torch.tensor(1 / num_classes))
        self.register_buffer("marginal", torch.full((num_classes,), 1 / num_classes))

    def forward(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:  # noqa: ARG002
        """Updates the state with the batch, then returns its pseudo-labels."""
        probabilities = weak_logits.float().softmax(dim=1)
        confidence, guess = probabilities.max(dim=1)
        self.level.lerp_(confidence.mean(), 1 - self.momentum)
        self.marginal.lerp_(probabilities.mean(dim=0), 1 - self.momentum)
        thresholds = self.level * self.marginal / self.marginal.max()
        return PseudoLabel(one_hot(guess, len(thresholds)).float(), (confidence >= thresholds[guess]).float())


class SoftMatch(nn.Module):
    """The most likely class, weighted by a truncated Gaussian of its probability (SoftMatch: Chen et al. 2023).

    The weight is exp(-n_sigma^2 (c - mean)^2 / (2 variance)) below the averaged mean of the confidence c, and 1 above.
    n_sigma = 2 follows the published code, 1 the paper's formula. With uniform alignment, c is computed from the
    probabilities divided by their average and normalized; the class is that of the original probabilities.
    """

    mean: Tensor  # [], averaged mean of the confidence of a batch
    variance: Tensor  # [], its averaged unbiased variance
    marginal: Tensor  # [classes], averaged probabilities; 0 before the first batch

    def __init__(
        self,
        num_classes: int,
        num_images: int,  # noqa: ARG002
        momentum: ShareBelowOne = 0.999,
        n_sigma: Positive = 2.0,
        uniform_alignment: bool = True,
    ) -> None:
        super().__init__()
        self.momentum, self.n_sigma, self.uniform_alignment = momentum, n_sigma, uniform_alignment
        self.register_buffer("mean", torch.tensor(1 / num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("marginal", torch.zeros(num_classes))

    def forward(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:  # noqa: ARG002
        """Updates the state with the batch, then returns its pseudo-labels."""
        probabilities = weak_logits.float().softmax(dim=1)
        confidence = (self.aligned(probabilities) if self.uniform_alignment else probabilities).amax(dim=1)
        mean = confidence.mean()
        variance = (confidence - mean).square().sum() / max(1, len(confidence) - 1)
        self.mean.lerp_(mean, 1 - self.momentum)
        self.variance.lerp_(variance, 1 - self.momentum)
        below = self.n_sigma * (confidence - self.mean).clamp(max=0)
        weight = torch.exp(-below.square() / (2 * self.variance).clamp(min=1e-10))
        return PseudoLabel(one_hot(probabilities.argmax(dim=1), len(self.marginal)).float(), weight)

    def aligned(self, probabilities: Tensor) -> Tensor:
        """Returns probabilities [B, classes] rescaled so that their average over the batches so far is uniform."""
        update_marginal(self.marginal, probabilities, self.momentum)
        ratio = probabilities / (self.marginal + TINY)
        return ratio / ratio.sum(dim=1, keepdim=True)
