"""AdaMatch (Berthelot, Roelofs et al. 2022), for the joint training."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from sslpl.ssl.alignment import aligned_to, update_marginal
from sslpl.ssl.task_method import Criterion, TaskData, TaskLoss, TaskMethod, TaskOutputs
from sslpl.types import PositiveOrZero, PseudoLabel, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class AdaMatch(TaskMethod):
    """FixMatch with a threshold relative to the confidence on labeled images, and aligned pseudo-labels.

    They are aligned to the predictions for labeled images. The values are USB's for CIFAR; as there, the paper's random
    interpolation of logits and its warm-up are left out.
    """

    threshold: PositiveOrZero = 0.95  # of a pseudo-label's confidence over the labeled images' mean confidence
    momentum: ShareBelowOne = 0.999  # of the averaged class distributions

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        return AdaMatchCriterion(self, len(data.frequency))


class AdaMatchCriterion(Criterion):
    """The loss of AdaMatch."""

    reads_labeled = True
    marginal: Tensor  # [classes], averaged probabilities of weak views; 0 before the first batch
    wanted: Tensor  # [classes], those of the labeled images; uniform before the first batch

    def __init__(self, method: AdaMatch, classes: int) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("marginal", torch.zeros(classes))
        self.register_buffer("wanted", torch.full((classes,), 1 / classes))

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Updates the averages with the batch, then computes its loss."""
        weak, strong = outputs.views
        assert outputs.labeled is not None
        target, weight = self.pseudo_labels(weak.logits, outputs.labeled.outputs.logits)
        pseudo = (weight * cross_entropy(strong.logits, target, reduction="none")).mean()
        return TaskLoss(pseudo, torch.zeros_like(pseudo), target, weight)

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, labeled_logits: Tensor) -> PseudoLabel:
        """Returns the most likely classes after alignment, and which reach the relative threshold."""
        probabilities, labeled = weak_logits.softmax(dim=1), labeled_logits.softmax(dim=1)
        update_marginal(self.marginal, probabilities, self.method.momentum)
        self.wanted.lerp_(labeled.mean(dim=0), 1 - self.method.momentum)
        confidence, guess = aligned_to(self.wanted, probabilities, self.marginal).max(dim=1)
        threshold = self.method.threshold * labeled.amax(dim=1).mean()
        return PseudoLabel(one_hot(guess, len(self.wanted)).float(), (confidence >= threshold).float())
