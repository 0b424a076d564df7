"""Semi-supervised training of the backbone with a rule: its options and the loss of unlabeled images.

A rule of `rules.py` or `adaptive.py` pseudo-labels the weak view of an unlabeled image; the backbone learns to predict
the pseudo-label from another view of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslpl.ssl.alignment import TINY, update_marginal
from sslpl.ssl.rules import Divergence, divergence_from
from sslpl.ssl.task_method import Criterion, TaskData, TaskLoss, TaskMethod, TaskOutputs, ViewKind
from sslpl.types import PositiveOrZero, PseudoLabel, ShareBelowOne

View = Literal["strong", "weak", "same"]
Alignment = Literal["none", "uniform", "labeled"]


@dataclass(frozen=True)
class TaskSSL(TaskMethod):
    """The options of semi-supervised joint training with a rule; the defaults are FixMatch's."""

    rule: Callable[..., Any]  # weak logits (and image indices, if stateful) -> PseudoLabel
    view: View = "strong"  # view of the loss; weak: another weak view, same: the pseudo-labeled one
    teacher: bool = False  # pseudo-label with the averaged weights
    divergence: Divergence = "cross_entropy"
    align: Alignment = "none"  # the distribution that pseudo-labels are aligned to
    fairness: PositiveOrZero = 0.0  # weight of FreeMatch's fairness loss
    momentum: ShareBelowOne = 0.999  # of the averaged class distributions for alignment and fairness

    @property
    def views(self) -> tuple[ViewKind, ...]:
        """The pseudo-labeled view, and the one of the loss if it is another."""
        return ("weak",) if self.view == "same" else ("weak", self.view)

    @property
    def forwarded(self) -> slice:
        """All views, or without the teacher's."""
        return slice(-1, None) if self.teacher else slice(None)

    @property
    def has_teacher(self) -> bool:
        """True if the averaged weights pseudo-label."""
        return self.teacher

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        return TaskCriterion(self, data.frequency, data.num_unlabeled)


def no_task_ssl() -> None:
    """Disables the unlabeled term: the joint training uses labeled images only, as published (SSLPM)."""


class TaskCriterion(Criterion):
    """The loss of unlabeled images; the class distributions that it tracks during a training are buffers."""

    marginal: Tensor  # [classes], averaged probabilities of weak views, for alignment; 0 before the first batch
    wanted: Tensor  # [classes], target of the alignment
    expected: Tensor  # [classes], averaged probabilities of weak views, for the fairness loss
    histogram: Tensor  # [classes], averaged shares of the most likely classes

    def __init__(self, method: TaskSSL, frequency: Tensor, num_images: int) -> None:
        """Initializes the distributions; `frequency` [classes] holds the class shares of the labeled images."""
        super().__init__()
        classes = len(frequency)
        self.method, self.rule = method, instantiate_rule(method.rule, classes, num_images)
        uniform = torch.full((classes,), 1 / classes)
        self.register_buffer("marginal", torch.zeros(classes))
        self.register_buffer("wanted", frequency.float() if method.align == "labeled" else uniform)
        self.register_buffer("expected", uniform.clone())
        self.register_buffer("histogram", uniform.clone())

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Computes the loss of the last view against pseudo-labels from the first."""
        weak_logits, logits = outputs.views[0].logits.detach(), outputs.views[-1].logits
        aligned_logits = self.aligned(weak_logits) if self.method.align != "none" else weak_logits
        target, weight = self.pseudo_labels(aligned_logits, outputs.index)
        pseudo = (weight * divergence_from(logits, target, self.method.divergence)).mean()
        fairness = self.fairness_loss(weak_logits, logits, weight) if self.method.fairness else pseudo.new_zeros(())
        return TaskLoss(pseudo, self.method.fairness * fairness, target, weight)

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """Returns the pseudo-labels of the rule."""
        labels: PseudoLabel = self.rule(weak_logits, *([index] if isinstance(self.rule, nn.Module) else []))
        return labels

    @torch.no_grad()
    def aligned(self, weak_logits: Tensor) -> Tensor:
        """Returns logits rescaled so that the average probabilities over the batches so far are the wanted ones.

        ReMixMatch (Berthelot et al. 2020), with the exponential average of SoftMatch's code.
        """
        probabilities = weak_logits.softmax(dim=1)
        update_marginal(self.marginal, probabilities, self.method.momentum)
        ratio = probabilities * (self.wanted + TINY) / (self.marginal + TINY)
        return ratio.log().log_softmax(dim=1)

    def fairness_loss(self, weak_logits: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """Returns FreeMatch's fairness loss (equation 11) of `logits` against the averaged class distribution.

        Both distributions are divided by the histogram of their most likely classes. 0 if all weights are 0.
        """
        weak, mask = weak_logits.softmax(dim=1), (weight > 0).float()
        self.expected.lerp_(weak.mean(dim=0), 1 - self.method.momentum)
        self.histogram.lerp_(predicted_class_shares(weak, torch.ones_like(mask)), 1 - self.method.momentum)
        strong = logits.softmax(dim=1)
        mean = (strong * mask[:, None]).sum(dim=0) / mask.sum().clamp(min=1)
        debiased = divided_by_histogram(mean, predicted_class_shares(strong.detach(), mask))
        return (divided_by_histogram(self.expected, self.histogram) * (debiased + 1e-12).log()).sum() * mask.any()


def instantiate_rule(rule: Any, num_classes: int, num_images: int) -> Any:
    """Returns a pseudo-label rule; a stateful one is built for the number of classes and of unlabeled images."""
    if isinstance(rule, partial) and isinstance(rule.func, type):
        return rule(num_classes=num_classes, num_images=num_images)
    return rule


def predicted_class_shares(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Returns the shares [classes] of the most likely classes among the images whose mask is 1 (not 0)."""
    counts = probabilities.new_zeros(probabilities.shape[1]).index_add_(0, probabilities.argmax(dim=1), mask)
    return counts / counts.sum().clamp(min=1)


def divided_by_histogram(distribution: Tensor, histogram: Tensor) -> Tensor:
    """Returns the normalized ratio of a distribution to a histogram, 0 where the histogram is 0."""
    ratio = torch.where(histogram > 0, distribution / histogram.clamp(min=1e-30), 0.0)
    return ratio / ratio.sum().clamp(min=1e-30)
