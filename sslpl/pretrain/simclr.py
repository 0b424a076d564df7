"""SimCLR: trains a backbone, without labels, to recognize two views of the same image (Chen et al. 2020).

Loss and projection head are implemented here, because the libraries that offer them require a training framework.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sslpl.clustering.neighbors import blocks
from sslpl.data.images import to_device
from sslpl.learn.optimizers import load_optimizer, rate_tensor, set_rates
from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.pretrain.simclr_views import SimCLRViews
from sslpl.seeds import rng, seeded_draws
from sslpl.types import Count, Images, Positive, PositiveOrZero, Share, ShareBelowOne, Step

Row = dict[str, float | int | None]


@dataclass(frozen=True)
class SimCLR:
    """Options of SimCLR; the defaults are those of SCAN (Van Gansbeke et al. 2020), which TypiClust uses."""

    epochs: Count = 500
    batch_size: Count = 512
    rate: Positive = 0.4
    momentum: ShareBelowOne = 0.9
    weight_decay: PositiveOrZero = 1e-4
    temperature: Positive = 0.1
    projection: Count = 128
    smallest_crop: Share = 0.2
    jitter: PositiveOrZero = 0.5
    jitter_probability: Share = 0.8
    gray_probability: Share = 0.2
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0: a cosine decay to a thousandth (SCAN)."""
        return self.rate * (0.001 + 0.999 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2)


class Pretraining(NamedTuple):
    """The constants of a pre-training: options, data and device."""

    options: SimCLR
    images: Images
    views: SimCLRViews
    seed: int
    device: torch.device
    bfloat16: bool


@dataclass
class PretrainState:
    """The state of a pre-training: networks, optimizer, the next epoch and step, and the metrics so far."""

    backbone: nn.Module
    projection: nn.Module
    optimizer: torch.optim.SGD
    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))  # sum of the epoch's losses
    history: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as tensors, numbers and containers of them."""
        networks = {name: getattr(self, name).state_dict() for name in ("backbone", "projection", "optimizer")}
        return networks | {"position": (self.epoch, self.step), "sums": self.sums, "history": self.history}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restores a state that `to_dict` returned."""
        for name in ("backbone", "projection"):
            getattr(self, name).load_state_dict(saved[name])
        load_optimizer(self.optimizer, saved["optimizer"])
        self.epoch, self.step = saved["position"]
        self.sums, self.history = saved["sums"], saved["history"]


def projection_head(width: int, out: int) -> nn.Sequential:
    """Returns the network that projects embeddings [B, width] to the inputs of the loss [B, out] (Chen et al. 2020)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def initial_pretrain_state(
    backbone: nn.Module, projection: nn.Module, options: SimCLR, device: torch.device
) -> PretrainState:
    """Returns the state before the first step, with a new optimizer."""
    backbone.to(device).to(memory_format=torch.channels_last)
    weights = [*backbone.parameters(), *projection.to(device).parameters()]
    optimizer = torch.optim.SGD(
        weights, lr=rate_tensor(device), momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )
    return PretrainState(backbone, projection, optimizer)


def pretrain(task: Pretraining, state: PretrainState) -> Iterator[Step]:
    """Trains on all images, starting from `state`; the draws of a step depend only on seed, epoch and step."""
    options = task.options
    for epoch in range(state.epoch, options.epochs):
        batches = whole_batches(len(task.images), options.batch_size, rng(task.seed, "pretraining order", epoch))
        set_rates(state.optimizer, (options.learning_rate_at(epoch),))
        loss_sum = state.sums.to(task.device)
        for images in task.images.batches(batches[state.step :]):
            draws = task.views.draw(
                2 * len(images), *task.images.shape[1:], rng(task.seed, "pretraining views", epoch, state.step)
            )
            with seeded_draws(task.device, task.seed, "pretraining masks", epoch, state.step):
                loss_sum = loss_sum + contrastive_step(task, state, task.views(torch.cat([images, images]), draws))
            state.sums, state.step = loss_sum, state.step + 1
            if state.step < len(batches):
                yield Step(len(images))
        loss = float(loss_sum) / len(batches)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower pretraining.rate")
        state.epoch, state.step, state.sums = epoch + 1, 0, torch.zeros(())
        yield Step(len(batches[-1]), {"loss": loss})


def whole_batches(count: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """Returns random batches of equal size, on which the loss depends; the remainder is dropped (SCAN)."""
    order = torch.randperm(count, generator=generator)
    return list(torch.split(order, batch_size))[: max(1, count // batch_size)]


def contrastive_step(task: Pretraining, state: PretrainState, views: Tensor) -> Tensor:
    """Trains one step on views [2B, C, H, W], in which i and B + i are of one image; returns the loss on the device."""
    state.backbone.train()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(task.device.type, dtype=torch.bfloat16, enabled=task.bfloat16):
        projected = state.projection(state.backbone(views).embedding)
    loss = nt_xent(projected.float(), task.options.temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    return loss.detach()


def nt_xent(projected: Tensor, temperature: float) -> Tensor:
    """Returns the mean normalized, temperature-scaled cross-entropy of views [2B, P] (Chen et al. 2020, equation 1).

    Rows i and B + i are of one image; each row must identify the other one among all rows but itself, by cosine.
    """
    unit = normalize(projected, dim=1)
    diagonal = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(diagonal, -torch.inf)
    return cross_entropy(similarity, torch.arange(len(unit), device=unit.device).roll(len(unit) // 2))


def embed_images(task: Pretraining, backbone: nn.Module, images: Images) -> Tensor:
    """Returns the embeddings [N, D] of images without augmentation, on the device."""
    frozen = FrozenBackbone(backbone, task.bfloat16)
    batches = torch.split(torch.arange(len(images)), inference_batch_size(task.device, *images.shape[1:]))
    with torch.inference_mode():
        return torch.cat([frozen(task.views.normalize(batch)).embedding for batch in images.batches(batches)])


def knn_accuracy(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, neighbors: int = 200, temperature: float = 0.07
) -> float | None:
    """Returns the accuracy on test embeddings [M, D] of a vote of the nearest training embeddings [N, D].

    A vote weighs exp(cosine / temperature) (Wu et al. 2018, with their 200 and 0.07). None if N or M is 0.
    """
    if not len(train) or not len(test):
        return None
    train, test, labels = normalize(train), normalize(test), to_device(labels, train.device)
    classes, correct = int(max(labels.max(), test_labels.max())) + 1, 0
    for rows in blocks(len(test), len(train), train.device):
        cosine, nearest = (test[rows] @ train.T).topk(min(neighbors, len(train)), dim=1)
        votes = cosine.new_zeros(len(cosine), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        correct += int((votes.argmax(dim=1).cpu() == test_labels[rows]).sum())
    return correct / len(test)
