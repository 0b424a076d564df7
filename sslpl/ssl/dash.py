"""Dash: semi-supervised learning with dynamic thresholding (Xu et al. 2021), for the joint training."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from sslpl.ssl.task_method import Criterion, TaskData, TaskLoss, TaskMethod, TaskOutputs
from sslpl.types import Positive, PositiveOrZero, PseudoLabel, Ratio, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class Dash(TaskMethod):
    """Pseudo-labels count if their own loss is below a threshold that falls from the labeled images' loss.

    The values are USB's for CIFAR, with its steps and epochs as shares of its 1,048,576 steps. The first threshold is
    the loss of the first labeled batch after the warm-up (the paper: of all labeled images; USB: of the test images).
    """

    temperature: Positive = 0.5  # of the pseudo-labels, until the threshold is the lowest; then they are hard
    decay: Ratio = 1.27  # the paper's gamma, by which the threshold is divided
    decay_every: Positive = 0.009765625  # share of the steps between two divisions: 10 of 1,024 epochs
    scale: Positive = 1.0001  # the paper's C, a factor on the first threshold
    lowest: PositiveOrZero = 0.05  # threshold
    warm_up: ShareBelowOne = 0.001953125  # share of the steps without the unlabeled term: 2,048 of 1,048,576

    def ramp_at(self, step: int, steps: int) -> float:
        """Returns the factor on the weight of the unlabeled term: 0 during the warm-up."""
        return 0.0 if step / steps < self.warm_up else super().ramp_at(step, steps)

    def criterion(self, data: TaskData) -> Criterion:  # noqa: ARG002
        """Returns the loss of a joint training, in its initial state."""
        return DashCriterion(self)


class DashCriterion(Criterion):
    """The loss of Dash."""

    reads_labeled = True
    initial_loss: Tensor  # [], of the labeled images after the warm-up; NaN until then

    def __init__(self, method: Dash) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("initial_loss", torch.tensor(torch.nan))

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Computes the loss of a batch."""
        weak, strong = outputs.views
        target, weight = self.pseudo_labels(weak.logits, self.threshold(outputs))
        pseudo = (weight * cross_entropy(strong.logits, target, reduction="none")).mean()
        return TaskLoss(pseudo, torch.zeros_like(pseudo), target, weight)

    @torch.no_grad()
    def threshold(self, outputs: TaskOutputs) -> Tensor:
        """Returns the threshold [] of a step; NaN, which no loss is below, during the warm-up."""
        method, since = self.method, outputs.progress - self.method.warm_up
        if since < 0:
            return self.initial_loss
        assert outputs.labeled is not None
        loss = cross_entropy(outputs.labeled.outputs.logits, outputs.labeled.labels)
        self.initial_loss.copy_(torch.where(self.initial_loss.isnan(), loss, self.initial_loss))
        divisions = int(since / method.decay_every)
        return (method.scale * method.decay**-divisions * self.initial_loss).clamp(min=method.lowest)

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, threshold: Tensor) -> PseudoLabel:
        """Returns sharpened probabilities, or the most likely classes at the lowest threshold, if their loss is low."""
        soft = (weak_logits / self.method.temperature).softmax(dim=1)
        hard = one_hot(weak_logits.argmax(dim=1), weak_logits.shape[1]).float()
        target = torch.where(threshold <= self.method.lowest, hard, soft)
        return PseudoLabel(target, (cross_entropy(weak_logits, target, reduction="none") <= threshold).float())
