"""Stateless SSL methods: pseudo-labels of unlabeled images from the logits of their weak views.

The methods with a state, whose thresholds or weights adapt during a fine-tune, are in `adaptive.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, mse_loss, one_hot

from sslpl.types import UNLABELED, Count, Positive, PseudoLabel, Share, ShareBelowOne

Divergence = Literal["cross_entropy", "kl", "mse"]


def no_ssl() -> None:
    """Disables the unlabeled term: the fine-tune uses labeled images only (SCAL)."""


def pseudo_label_soft(weak_logits: Tensor, threshold: Share = 0.9) -> PseudoLabel:
    """Returns the class probabilities, if the highest reaches the threshold (SSLPM's published code)."""
    probabilities = weak_logits.float().softmax(dim=1)
    return PseudoLabel(probabilities, (probabilities.amax(dim=1) >= threshold).float())


def pseudo_label_hard(weak_logits: Tensor, threshold: Share = 0.9) -> PseudoLabel:
    """Returns the most likely class, if its probability reaches the threshold (SSLPM's figure; FixMatch)."""
    soft, weight = pseudo_label_soft(weak_logits, threshold)
    return PseudoLabel(one_hot(soft.argmax(dim=1), soft.shape[1]).float(), weight)


def uda(weak_logits: Tensor, temperature: Positive = 0.4, threshold: Share = 0.8) -> PseudoLabel:
    """Returns sharpened probabilities, if the highest was above the threshold (UDA: Xie et al. 2020, CIFAR-10)."""
    logits = weak_logits.float()
    return PseudoLabel((logits / temperature).softmax(dim=1), (logits.softmax(dim=1).amax(dim=1) > threshold).float())


@dataclass(frozen=True)
class LabelGuessing:
    """The sharpened mean of several weak views' probabilities; all images count (MixMatch: Berthelot et al. 2019).

    Sharpening is p^(1 / temperature), normalized (its equation 7).
    """

    temperature: Positive = 0.5
    views: Count = 2

    def __call__(self, weak_logits: Tensor) -> PseudoLabel:
        """Returns pseudo-labels from the logits [views * B, classes], ordered by view, then by image."""
        mean = weak_logits.float().softmax(dim=1).view(self.views, -1, weak_logits.shape[1]).mean(dim=0)
        target = (mean.log() / self.temperature).softmax(dim=1)  # the power in logarithms: it may underflow
        return PseudoLabel(target, target.new_ones(len(target)))


@dataclass(frozen=True)
class MeanTeacher:
    """The class probabilities of averaged weights; all images count (Mean Teacher: Tarvainen and Valpola 2017).

    The fine-tune freezes the backbone, so the teacher is the exponential moving average of the backbone over the steps
    of the joint training of the same cycle (ours), with decay `teacher_decay`; in the first steps it is the true mean,
    as in the published code.
    """

    teacher_decay: ShareBelowOne = 0.999
    threshold: Share = 0.0  # published: none
    divergence: Divergence = "mse"  # of the backbone's strong view from the teacher's weak view

    def __call__(self, weak_logits: Tensor) -> PseudoLabel:
        """Returns pseudo-labels from the teacher's logits [B, classes]."""
        return pseudo_label_soft(weak_logits, self.threshold)

    def loss(self, strong_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the losses to rank, [B]."""
        return divergence_from(strong_logits, target, self.divergence)


@dataclass(frozen=True)
class Consistency:
    """The loss to rank is the divergence of the strong view's prediction from the weak view's; all images count.

    After consistency regularization: the squared difference of Laine and Aila 2017, the KL divergence of Xie et al.
    2020; that the module ranks it is ours.
    """

    divergence: Divergence = "kl"

    def __call__(self, weak_logits: Tensor) -> PseudoLabel:
        """Returns pseudo-labels from the logits [B, classes] of the weak view."""
        return pseudo_label_soft(weak_logits, 0.0)

    def loss(self, strong_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the losses to rank, [B]."""
        return divergence_from(strong_logits, target, self.divergence)


def divergence_from(strong_logits: Tensor, target: Tensor, divergence: Divergence = "cross_entropy") -> Tensor:
    """Returns cross-entropy or KL(target || prediction), in nats, or the mean squared difference over classes, [B]."""
    if divergence == "kl":
        return kl_div(strong_logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)
    if divergence == "mse":
        return mse_loss(strong_logits.softmax(dim=1), target, reduction="none").mean(dim=1)
    return cross_entropy(strong_logits, target, reduction="none")


def confident_rows(weight: Tensor) -> Tensor:
    """Returns the rows of nonzero weight, in order; the last of an odd number is dropped (SSLPM's code)."""
    rows = weight.nonzero().flatten()
    return rows[: len(rows) // 2 * 2]


def pseudo_label_counts(target: Tensor, weight: Tensor, truth: Tensor) -> Tensor:
    """Returns weight, weight if correct, and 1 for each pseudo-label, [B, 3]; the true labels are for analysis only.

    If a true label is unknown (-1), the second value is NaN, and so are the sums over it; an image of no class (-2) has
    no correct pseudo-label.
    """
    correct = (target.argmax(dim=1) == truth).to(weight.dtype).masked_fill(truth == UNLABELED, torch.nan)
    return torch.stack([weight, weight * correct, torch.ones_like(weight)], dim=1)
