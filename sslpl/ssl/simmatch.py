"""SimMatch: semi-supervised learning with similarity matching (Zheng et al. 2022), for the joint training."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from sslpl.ssl.alignment import RecentAlignment
from sslpl.ssl.projection import Projection
from sslpl.ssl.task_method import Criterion, LabeledOutputs, TaskData, TaskLoss, TaskMethod, TaskOutputs
from sslpl.types import Count, Positive, PositiveOrZero, Share, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class SimMatch(TaskMethod):
    """The strong view learns the weak view's class and similarities to labeled images, which correct each other.

    The values are USB's for CIFAR; without USB's ensemble of projections, a later method.
    """

    threshold: Share = 0.95  # of the confidence
    temperature: Positive = 0.1  # of similarities
    smoothing: Share = 0.9  # weight of an image's own prediction in its pseudo-label
    align_batches: Count = 32  # number of batches whose mean is aligned to the uniform distribution
    dimensions: Count = 128  # of the projected embeddings
    bank_momentum: ShareBelowOne = 0.7  # of the projected labeled images
    instance_weight: PositiveOrZero = 1.0  # of the loss of similarities

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        return SimMatchCriterion(self, data)


class SimMatchCriterion(Criterion):
    """The loss of SimMatch.

    Similarities count once all labeled images have been projected, in the second epoch (USB: likewise).
    """

    reads_labeled = True
    bank: Tensor  # [L, dimensions], averaged projections of the labeled images; 0 before the first
    labels: Tensor  # [L] int64

    def __init__(self, method: SimMatch, data: TaskData) -> None:
        super().__init__(Projection(data.width, method.dimensions))
        self.method = method
        self.alignment = RecentAlignment(len(data.frequency), method.align_batches)
        self.register_buffer("bank", torch.zeros(len(data.labels), method.dimensions))
        self.register_buffer("labels", data.labels.clone())

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Computes the loss of a batch by the bank before it, and updates the bank."""
        weak, strong = outputs.views
        assert weak.projected is not None
        assert strong.projected is not None
        assert outputs.labeled is not None
        with torch.no_grad():
            complete = self.bank.any(dim=1).all()
            aligned = self.alignment(weak.logits.softmax(dim=1))
            similarity = self.similarities(weak.projected)
            target = torch.where(complete, self.aggregated(aligned, similarity), aligned)
            own = aligned[:, self.labels].clamp(min=1e-30).log()
            wanted = (similarity + own).softmax(dim=1)  # a product, in logarithms
            weight = (target.amax(dim=1) >= self.method.threshold).float()
        pseudo = (weight * cross_entropy(strong.logits, target, reduction="none")).mean()
        instances = cross_entropy(self.similarities(strong.projected), wanted) * complete
        self.update_bank(outputs.labeled)
        return TaskLoss(pseudo, self.method.instance_weight * instances, target, weight)

    def similarities(self, projected: Tensor) -> Tensor:
        """Returns the logits [B, L] of the similarities to the labeled images."""
        bank = self.bank.clone()  # which is updated before the gradient is computed
        return projected @ bank.T / self.method.temperature

    def aggregated(self, probabilities: Tensor, similarity: Tensor) -> Tensor:
        """Returns probabilities [B, classes] averaged with the summed similarities to each class."""
        by_class = torch.zeros_like(probabilities).index_add_(1, self.labels, similarity.softmax(dim=1))
        return self.method.smoothing * probabilities + (1 - self.method.smoothing) * by_class

    @torch.no_grad()
    def update_bank(self, labeled: LabeledOutputs) -> None:
        """Averages the projections of the labeled batch into the bank; the first of an image is its average (ours)."""
        projected, before = labeled.outputs.projected, self.bank[labeled.index]
        assert projected is not None
        momentum = self.method.bank_momentum * before.any(dim=1, keepdim=True)
        self.bank[labeled.index] = normalize(momentum * before + (1 - momentum) * projected, dim=1)
