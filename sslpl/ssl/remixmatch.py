"""ReMixMatch (Berthelot et al. 2020), for the joint training."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sslpl.ssl.alignment import aligned_to, update_marginal
from sslpl.ssl.task_method import Criterion, TaskData, TaskLoss, TaskMethod, TaskOutputs, ViewKind
from sslpl.types import Count, Positive, PositiveOrZero, Share, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class ReMixMatch(TaskMethod):
    """Mixtures of labeled and pseudo-labeled images, whose classes are learned; a rotation is to be recognized.

    The values are USB's for CIFAR, with two strong views (the paper: eight) by RandAugment (the paper: CTAugment).
    """

    ratio: Count = 1
    weight: PositiveOrZero = 1.5  # of the mixed unlabeled images
    ramp_up: Share = 0.015625
    temperature: Positive = 0.5  # of the pseudo-labels
    alpha: Positive = 0.75  # of the Beta distribution of the mixtures
    strong_weight: PositiveOrZero = 0.5  # of the first strong view, unmixed; grows as `weight` does
    rotation_weight: PositiveOrZero = 0.5  # of recognizing its rotation
    momentum: ShareBelowOne = 0.999  # of the averaged class distribution

    @property
    def views(self) -> tuple[ViewKind, ...]:
        """A weak view and two strong ones."""
        return ("weak", "strong", "strong")

    @property
    def forwarded(self) -> slice:
        """The weak view and the first strong one; the second is only mixed."""
        return slice(0, 2)

    @property
    def num_forward_views(self) -> int:
        """The number of views per unlabeled image that pass the backbone: two, three mixed, a rotated one."""
        return 6

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        return ReMixMatchCriterion(self, data)


class MixDraws(NamedTuple):
    """The random numbers of a step, on the CPU."""

    share: float  # of an image in its mixture, in 0.5..1
    other: Tensor  # [N], the image that each is mixed with
    turns: Tensor  # [U], quarter turns of each unlabeled image


class ReMixMatchCriterion(Criterion):
    """The loss of ReMixMatch."""

    reads_labeled = reads_images = True
    marginal: Tensor  # [classes], averaged probabilities of weak views; 0 before the first batch
    wanted: Tensor  # [classes], class shares of the labeled images

    def __init__(self, method: ReMixMatch, data: TaskData) -> None:
        super().__init__(nn.Linear(data.width, 4))
        self.method = method
        self.register_buffer("marginal", torch.zeros_like(data.frequency))
        self.register_buffer("wanted", data.frequency.clone())

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Updates the average with the batch, then computes its loss."""
        assert outputs.labeled is not None
        assert outputs.forward is not None
        assert outputs.rng is not None
        labels, target = outputs.labeled.labels, self.pseudo_labels(outputs.views[0].logits)
        targets = torch.cat([one_hot(labels, target.shape[1]).float(), target, target, target])
        labeled_views, weak, *strong = outputs.images
        draws = draw_mixture(len(targets), len(target), self.method.alpha, outputs.rng)
        images, targets = (mixed(whole, draws) for whole in (torch.cat([labeled_views, *strong, weak]), targets))
        turns = draws.turns.to(target.device)
        found = outputs.forward(torch.cat([images, rotated(strong[0], turns)]))
        assert found.projected is not None
        losses = cross_entropy(found.logits[: len(targets)], targets, reduction="none")
        strong_loss = cross_entropy(outputs.views[1].logits, target)
        rotation_loss = cross_entropy(found.projected[len(targets) :], turns)
        ramp = self.method.ramp_at(outputs.step, outputs.steps)
        auxiliary = self.method.strong_weight * ramp * strong_loss + self.method.rotation_weight * rotation_loss
        weight = target.new_ones(len(target))
        return TaskLoss(losses[len(labels) :].mean(), auxiliary, target, weight, losses[: len(labels)].mean())

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor) -> Tensor:
        """Returns probabilities [U, classes] that are aligned to the labeled images' classes and sharpened."""
        probabilities = weak_logits.softmax(dim=1)
        update_marginal(self.marginal, probabilities, self.method.momentum)
        aligned = aligned_to(self.wanted, probabilities, self.marginal)
        return (aligned.log() / self.method.temperature).softmax(dim=1)  # the power in logarithms: it may underflow


def draw_mixture(images: int, unlabeled: int, alpha: float, rng: Generator) -> MixDraws:
    """Draws a share from a symmetric Beta distribution, and at least a half; a partner for each image; turns."""
    seed = int(torch.randint(2**62, (), generator=rng))
    share = np.random.default_rng(seed).beta(alpha, alpha)
    return MixDraws(
        max(share, 1 - share), torch.randperm(images, generator=rng), torch.randint(4, (unlabeled,), generator=rng)
    )


def mixed(values: Tensor, draws: MixDraws) -> Tensor:
    """Returns values [N, ...] of images or targets, each mixed with those of another image (MixMatch, section 3.4)."""
    return draws.share * values + (1 - draws.share) * values[draws.other.to(values.device)]


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Rotates each of square images [B, C, H, H] by its number of quarter turns [B], counterclockwise."""
    views = torch.stack([images.rot90(count, (2, 3)) for count in range(4)])
    return views[turns, torch.arange(len(images), device=images.device)]
