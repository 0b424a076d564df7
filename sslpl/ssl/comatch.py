"""CoMatch: semi-supervised learning with contrastive graph regularization (Li et al. 2021), for the joint training."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from sslpl.ssl.alignment import RecentAlignment
from sslpl.ssl.projection import Projection
from sslpl.ssl.task_method import Criterion, TaskData, TaskLoss, TaskMethod, TaskOutputs, ViewKind
from sslpl.types import Count, Positive, PositiveOrZero, PseudoLabel, Share


@dataclass(frozen=True, kw_only=True)
class CoMatch(TaskMethod):
    """Pseudo-labels smoothed by similar images of a memory, and a graph of pseudo-labels that two strong views learn.

    The values are those of the published code and of USB for CIFAR, which agree; without USB's ensemble of projections,
    a later method.
    """

    threshold: Share = 0.95  # of the confidence
    temperature: Positive = 0.2  # of similarities
    smoothing: Share = 0.9  # weight of an image's own prediction in its pseudo-label
    memory: Count = 5  # number of batches whose images smooth pseudo-labels
    align_batches: Count = 32  # number of batches whose mean is aligned to the uniform distribution
    dimensions: Count = 64  # of the projected embeddings
    contrast_threshold: Share = 0.8  # similarity of pseudo-labels above which two images are neighbors
    contrast_weight: PositiveOrZero = 1.0

    @property
    def views(self) -> tuple[ViewKind, ...]:
        """A weak view and two strong ones."""
        return ("weak", "strong", "strong")

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        return CoMatchCriterion(self, data)


class CoMatchCriterion(Criterion):
    """The loss of CoMatch."""

    reads_labeled = True
    memory: Tensor  # [rows, dimensions], projected weak views of the latest batches, unlabeled and labeled
    beliefs: Tensor  # [rows, classes], their aligned probabilities, or labels
    remembered: Tensor  # [] int64, the number of images put into the memory so far

    def __init__(self, method: CoMatch, data: TaskData) -> None:
        super().__init__(Projection(data.width, method.dimensions))
        classes = len(data.frequency)
        rows = method.memory * (data.batch_size + data.unlabeled_batch_size)
        self.method = method
        self.alignment = RecentAlignment(classes, method.align_batches)
        self.register_buffer("memory", torch.zeros(rows, method.dimensions))
        self.register_buffer("beliefs", torch.zeros(rows, classes))
        self.register_buffer("remembered", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: TaskOutputs) -> TaskLoss:
        """Computes the loss of a batch, and puts its weak views into the memory."""
        _, first, second = outputs.views
        assert first.projected is not None
        assert second.projected is not None
        target, weight = self.pseudo_labels(outputs)
        pseudo = (weight * cross_entropy(first.logits, target, reduction="none")).mean()
        graph = neighbor_graph(target, self.method.contrast_threshold)
        contrast = contrast_loss(first.projected, second.projected, graph, self.method.temperature)
        return TaskLoss(pseudo, self.method.contrast_weight * contrast, target, weight)

    @torch.no_grad()
    def pseudo_labels(self, outputs: TaskOutputs) -> PseudoLabel:
        """Returns aligned and smoothed probabilities, and which are confident."""
        weak, labeled = outputs.views[0], outputs.labeled
        assert weak.projected is not None
        assert labeled is not None
        assert labeled.outputs.projected is not None
        aligned = self.alignment(weak.logits.softmax(dim=1))
        target = self.smoothed(aligned, weak.projected)
        labels = one_hot(labeled.labels, aligned.shape[1]).float()
        self.remember(torch.cat([weak.projected, labeled.outputs.projected]), torch.cat([aligned, labels]))
        return PseudoLabel(target, (target.amax(dim=1) >= self.method.threshold).float())

    def smoothed(self, probabilities: Tensor, projected: Tensor) -> Tensor:
        """Returns probabilities [B, classes] averaged with those of similar images, once the memory is full."""
        similarity = (projected @ self.memory.T / self.method.temperature).softmax(dim=1)
        share = self.method.smoothing
        smoothed = share * probabilities + (1 - share) * (similarity @ self.beliefs)
        return torch.where(self.remembered >= len(self.memory), smoothed, probabilities)

    def remember(self, projected: Tensor, beliefs: Tensor) -> None:
        """Replaces the oldest images of the memory by these."""
        count = min(len(projected), len(self.memory))
        rows = (self.remembered + torch.arange(count, device=projected.device)) % len(self.memory)
        self.memory[rows], self.beliefs[rows] = projected[:count], beliefs[:count]
        self.remembered += count


def neighbor_graph(target: Tensor, threshold: float) -> Tensor:
    """Returns the similarities [B, B] of pseudo-labels that reach a threshold, and 1 on the diagonal, normalized."""
    similarity = (target @ target.T).fill_diagonal_(1)
    kept = similarity * (similarity >= threshold)
    return kept / kept.sum(dim=1, keepdim=True)


def contrast_loss(first: Tensor, second: Tensor, graph: Tensor, temperature: float) -> Tensor:
    """Returns the mean cross-entropy of the similarities of two views [B, P] against a graph [B, B] (equation 7)."""
    similarity = (first @ second.T / temperature).softmax(dim=1)
    return -(graph * (similarity + 1e-7).log()).sum(dim=1).mean()
