"""Semi-supervised training of the backbone: methods, and the loss of their unlabeled images.

A method pseudo-labels the weak view of an unlabeled image by a rule of `ssl.py` or `adaptive.py`; the backbone learns
the pseudo-label from another view of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.ssl.rules import Divergence, divergence_from
from sslpl.types import Count, PositiveOrZero, PseudoLabel, Share, ShareBelowOne

View = Literal["strong", "weak", "same"]
Alignment = Literal["none", "uniform", "labeled"]


@dataclass(frozen=True)
class TaskSSL:
    """How the backbone learns from unlabeled images in the joint training; the defaults are FixMatch's."""

    rule: Callable[..., Any]  # weak logits (and the images' places, if it has a state) -> PseudoLabel
    ratio: Count = 7  # unlabeled images of a step over `training.batch_size`
    weight: PositiveOrZero = 1.0  # of the unlabeled term
    ramp_up: Share = 0.0  # share of the steps over which the weight grows from 0, linearly
    average: ShareBelowOne = 0.999  # decay of the averaged weights that are tested and queried with
    view: View = "strong"  # what is learned from; weak: another weak view, same: the one that is pseudo-labeled
    teacher: bool = False  # the averaged weights say the pseudo-labels
    divergence: Divergence = "cross_entropy"
    align: Alignment = "none"  # the distribution that pseudo-labels are aligned to
    fairness: PositiveOrZero = 0.0  # weight of FreeMatch's fairness loss
    momentum: ShareBelowOne = 0.999  # of the averaged distributions that the last two compare with

    @property
    def views_passed(self) -> int:
        """How many views of an unlabeled image pass the backbone that learns."""
        return 1 if self.teacher or self.view == "same" else 2

    def weight_at(self, step: int, steps: int) -> float:
        """The weight of the unlabeled term in a step (from 0) of so many."""
        return self.weight * min(1.0, step / (self.ramp_up * steps)) if self.ramp_up else self.weight


def no_task_ssl() -> None:
    """The joint training sees labeled images alone, as published (SSLPM)."""


class TaskLoss(NamedTuple):
    """What a batch of unlabeled images costs, and its pseudo-labels."""

    pseudo: Tensor  # [], mean over all images, those of weight 0 too
    fairness: Tensor  # []
    target: Tensor  # [B, classes]
    weight: Tensor  # [B]


class TaskCriterion(nn.Module):
    """The unlabeled term of a method, with all that it learns about pseudo-labels during a training in buffers."""

    marginal: Tensor  # [classes], averaged probabilities of weak views, to align; 0 before the first batch
    wanted: Tensor  # [classes], what they are aligned to
    expected: Tensor  # [classes], averaged probabilities of weak views, for the fairness loss
    histogram: Tensor  # [classes], averaged shares of their most likely classes

    def __init__(self, method: TaskSSL, frequency: Tensor, num_images: int) -> None:
        """`frequency` [classes]: shares of the classes among the labeled images."""
        super().__init__()
        classes = len(frequency)
        self.method, self.rule = method, instantiate_rule(method.rule, classes, num_images)
        uniform = torch.full((classes,), 1 / classes)
        self.register_buffer("marginal", torch.zeros(classes))
        self.register_buffer("wanted", frequency.float() if method.align == "labeled" else uniform)
        self.register_buffer("expected", uniform.clone())
        self.register_buffer("histogram", uniform.clone())

    def forward(self, weak_logits: Tensor, logits: Tensor, index: Tensor) -> TaskLoss:
        """The loss of `logits` [B, classes] against what `weak_logits` [B, classes] say of the images at `index`."""
        weak_logits, logits = weak_logits.detach().float(), logits.float()
        told = self.aligned(weak_logits) if self.method.align != "none" else weak_logits
        target, weight = self.pseudo_labels(told, index)
        pseudo = (weight * divergence_from(logits, target, self.method.divergence)).mean()
        fairness = self.unfairness(weak_logits, logits, weight) if self.method.fairness else pseudo.new_zeros(())
        return TaskLoss(pseudo, fairness, target, weight)

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """What the rule says of weak views."""
        labels: PseudoLabel = self.rule(weak_logits, *([index] if isinstance(self.rule, nn.Module) else []))
        return labels

    @torch.no_grad()
    def aligned(self, weak_logits: Tensor) -> Tensor:
        """Logits of probabilities whose average, over the batches so far, would be the wanted one (ReMixMatch:
        Berthelot et al. 2020, with the exponential average of SoftMatch's code)."""
        probabilities = weak_logits.softmax(dim=1)
        keep = self.method.momentum * self.marginal.any()  # the first batch is the average
        self.marginal.copy_(keep * self.marginal + (1 - keep) * probabilities.mean(dim=0))
        ratio = probabilities * (self.wanted + 1e-6) / (self.marginal + 1e-6)
        return ratio.log().log_softmax(dim=1)

    def unfairness(self, weak_logits: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """How unlike the averaged distribution of classes the learned views' one is (FreeMatch, equation 11).

        Both are divided by the frequency of their most likely classes. 0 if no image counts.
        """
        weak, kept = weak_logits.softmax(dim=1), (weight > 0).float()
        self.expected.lerp_(weak.mean(dim=0), 1 - self.method.momentum)
        self.histogram.lerp_(predicted_class_shares(weak, torch.ones_like(kept)), 1 - self.method.momentum)
        strong = logits.softmax(dim=1)
        mean = (strong * kept[:, None]).sum(dim=0) / kept.sum().clamp(min=1)
        ours = divided_by_histogram(mean, predicted_class_shares(strong.detach(), kept))
        return (divided_by_histogram(self.expected, self.histogram) * (ours + 1e-12).log()).sum() * kept.any()


def instantiate_rule(rule: Any, num_classes: int, num_images: int) -> Any:
    """A pseudo-label rule as it is when learning begins: one with a state is built, for so many unlabeled images."""
    if isinstance(rule, partial) and isinstance(rule.func, type):
        return rule(num_classes=num_classes, num_images=num_images)
    return rule


def predicted_class_shares(probabilities: Tensor, kept: Tensor) -> Tensor:
    """Shares [classes] of the most likely classes of the images that are kept (1) and not left out (0)."""
    counts = probabilities.new_zeros(probabilities.shape[1]).index_add_(0, probabilities.argmax(dim=1), kept)
    return counts / counts.sum().clamp(min=1)


def divided_by_histogram(distribution: Tensor, histogram: Tensor) -> Tensor:
    """A distribution divided by a histogram where that is not 0, normalized."""
    ratio = torch.where(histogram > 0, distribution / histogram.clamp(min=1e-30), 0.0)
    return ratio / ratio.sum().clamp(min=1e-30)
