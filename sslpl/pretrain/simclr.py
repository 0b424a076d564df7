"""SimCLR: a backbone learns, without labels, which of many views are of one image (Chen et al. 2020).

The loss and the projection are a few lines here; the libraries that hold them bring a training framework along.
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
    """How the backbone learns; the defaults are those of SCAN (Van Gansbeke et al. 2020), which TypiClust uses."""

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

    def rate_in(self, epoch: int) -> float:
        """The learning rate of an epoch (from 0): half a cosine down to a thousandth (SCAN)."""
        return self.rate * (0.001 + 0.999 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2)


class Pretraining(NamedTuple):
    """What does not change during a pre-training."""

    options: SimCLR
    images: Images
    views: SimCLRViews
    seed: int
    device: torch.device
    bfloat16: bool


@dataclass
class PretrainState:
    """Where a pre-training stands: epoch and step of what comes next, and all that was learned so far."""

    backbone: nn.Module
    projection: nn.Module
    optimizer: torch.optim.SGD
    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))  # sum of the epoch's losses
    history: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The learner as tensors, numbers and containers of them, fit for a checkpoint."""
        networks = {name: getattr(self, name).state_dict() for name in ("backbone", "projection", "optimizer")}
        return networks | {"position": (self.epoch, self.step), "sums": self.sums, "history": self.history}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` returned."""
        for name in ("backbone", "projection"):
            getattr(self, name).load_state_dict(saved[name])
        load_optimizer(self.optimizer, saved["optimizer"])
        self.epoch, self.step = saved["position"]
        self.sums, self.history = saved["sums"], saved["history"]


def projection_head(width: int, out: int) -> nn.Sequential:
    """The network between embeddings [B, width] and what the loss compares [B, out] (Chen et al. 2020)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def initial_learner(backbone: nn.Module, projection: nn.Module, options: SimCLR, device: torch.device) -> PretrainState:
    """A learner at its beginning."""
    backbone.to(device).to(memory_format=torch.channels_last)
    weights = [*backbone.parameters(), *projection.to(device).parameters()]
    optimizer = torch.optim.SGD(
        weights, lr=rate_tensor(device), momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )
    return PretrainState(backbone, projection, optimizer)


def pretrain(task: Pretraining, state: PretrainState) -> Iterator[Step]:
    """Trains on all images from where `state` stands; the draws of a step depend on seed, epoch and step alone."""
    options = task.options
    for epoch in range(state.epoch, options.epochs):
        batches = whole_batches(len(task.images), options.batch_size, rng(task.seed, "pretraining order", epoch))
        set_rates(state.optimizer, (options.rate_in(epoch),))
        tally = state.sums.to(task.device)
        for images in task.images.batches(batches[state.step :]):
            draws = task.views.draw(
                2 * len(images), *task.images.shape[1:], rng(task.seed, "pretraining views", epoch, state.step)
            )
            with seeded_draws(task.device, task.seed, "pretraining masks", epoch, state.step):
                tally = tally + contrastive_step(task, state, task.views(torch.cat([images, images]), draws))
            state.sums, state.step = tally, state.step + 1
            if state.step < len(batches):
                yield Step(len(images))
        loss = float(tally) / len(batches)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower pretraining.rate")
        state.epoch, state.step, state.sums = epoch + 1, 0, torch.zeros(())
        yield Step(len(batches[-1]), {"loss": loss})


def whole_batches(count: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """Random batches of one size, for the loss depends on it; what is left over sits out the epoch (SCAN)."""
    order = torch.randperm(count, generator=generator)
    return list(torch.split(order, batch_size))[: max(1, count // batch_size)]


def contrastive_step(task: Pretraining, state: PretrainState, views: Tensor) -> Tensor:
    """One step on views [2B, C, H, W], the second ones below the first ones; returns its loss on the device."""
    state.backbone.train()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(task.device.type, dtype=torch.bfloat16, enabled=task.bfloat16):
        projected = state.projection(state.backbone(views).embedding)
    loss = nt_xent(projected.float(), task.options.temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    return loss.detach()


def nt_xent(projected: Tensor, temperature: float) -> Tensor:
    """The normalized, temperature-scaled cross-entropy (Chen et al. 2020, equation 1) of views [2B, P], a mean.

    Rows i and B + i are of one image; each row is to find the other one among all but itself, by cosine.
    """
    unit = normalize(projected, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    return cross_entropy(similarity, torch.arange(len(unit), device=unit.device).roll(len(unit) // 2))


def embed_images(task: Pretraining, backbone: nn.Module, images: Images) -> Tensor:
    """Embeddings [N, D] of images as they are, on the device."""
    frozen = FrozenBackbone(backbone, task.bfloat16)
    everything = torch.split(torch.arange(len(images)), inference_batch_size(task.device, *images.shape[1:]))
    with torch.inference_mode():
        return torch.cat([frozen(task.views.plain(batch)).embedding for batch in images.batches(everything)])


def knn_accuracy(
    known: Tensor, labels: Tensor, test: Tensor, truth: Tensor, neighbors: int = 200, temperature: float = 0.07
) -> float | None:
    """Share of test embeddings [M, D] that the votes of their nearest known ones [N, D] classify rightly.

    A neighbor votes with exp(cosine / temperature) (Wu et al. 2018, their 200 and 0.07); None without any of either.
    """
    if not len(known) or not len(test):
        return None
    known, test, labels = normalize(known), normalize(test), to_device(labels, known.device)
    classes, right = int(max(labels.max(), truth.max())) + 1, 0
    for rows in blocks(len(test), len(known), known.device):
        cosine, nearest = (test[rows] @ known.T).topk(min(neighbors, len(known)), dim=1)
        votes = cosine.new_zeros(len(cosine), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        right += int((votes.argmax(dim=1).cpu() == truth[rows]).sum())
    return right / len(test)
