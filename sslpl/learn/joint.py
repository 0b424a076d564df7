"""Joint training: the backbone learns the classes while the module learns to rank the losses."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.distributed.batch_norm import can_skip_forward, synchronized_batch_norm
from sslpl.distributed.collectives import all_reduce_sum
from sslpl.learn.sums import JointSums
from sslpl.learn.unlabeled_batches import (
    TaskTraining,
    UnlabeledBatch,
    frozen_statistics,
    unlabeled_sums,
)
from sslpl.pool import without
from sslpl.seeds import seeded_draws
from sslpl.setup import Setup
from sslpl.state import State


class JointInputs(NamedTuple):
    """What a step sees: this process's part of a labeled batch, and of an unlabeled one beside it."""

    views: Tensor  # [H, C, h, w], of `size` in all processes
    labels: Tensor  # [H]
    size: int
    unlabeled: UnlabeledBatch | None = None

    @property
    def images(self) -> int:
        """How many images all processes see."""
        return self.size + (len(self.unlabeled.places) if self.unlabeled is not None else 0)


JointStep = Callable[[JointInputs, bool], Tensor]  # inputs, detached -> sums


def mask_draws(setup: Setup, state: State) -> AbstractContextManager[None]:
    """Seeds what a step's random layers draw: each process has masks of its own, for images of its own."""
    return seeded_draws(setup.device, setup.seed, "masks", state.cycle, state.epoch, state.step, setup.world.rank)


def joint_train_index(state: State) -> Tensor:
    """Positions of the labeled images that the joint training sees: those that are not trimmed or held out."""
    return without(state.train_index, state.excluded)


def joint_step(
    setup: Setup,
    state: State,
    optimizer: torch.optim.Optimizer,
    inputs: JointInputs,
    detached: bool,
    task: TaskTraining | None = None,
) -> Tensor:
    """One step; returns the sums of the batch of all processes [8], on the device, in the order of `JointSums`."""
    state.backbone.train()
    optimizer.zero_grad(set_to_none=True)
    loss, sums = joint_loss(setup, state, inputs, detached, task)
    if loss.requires_grad:  # not without any image
        loss.backward()  # type: ignore[no-untyped-call]
    total = torch.stack([value.float() for value in sums])
    if setup.world.size > 1:
        all_reduce_sum(setup.world, [*gradients(optimizer), total])
    optimizer.step()
    return total


def gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Those of all weights that learn; zeros where this process has none, as another one may."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return [weight.grad for weight in weights if weight.grad is not None]


def joint_loss(
    setup: Setup, state: State, inputs: JointInputs, detached: bool, task: TaskTraining | None
) -> tuple[Tensor, JointSums[Tensor]]:
    """This process's part of the loss and of the sums of the batch."""
    batch, size, held = inputs.unlabeled, inputs.size, len(inputs.views)
    views = inputs.views if task is None or batch is None else torch.cat([inputs.views, *task.views(batch)])
    # Compiled networks are compiled for whole batches: another size is not worth another compilation.
    network = state.backbone if size == setup.training.batch_size else state.backbone.forward
    single = size == 1 and batch is None
    with setup.autocast(), frozen_statistics(state.backbone, single), synchronized_batch_norm(setup.world):
        if can_skip_forward(state.backbone, views):
            logits, maps = views.new_zeros(0, len(setup.dataset.class_names)), []
        else:
            logits, maps, _ = network(views)
        unlabeled = None
        if task is not None and batch is not None:  # no slice without need: its gradient copies the whole stage
            unlabeled = task.loss(batch, logits)
            logits, maps = logits[:held], [stage[:held] for stage in maps]
        losses = cross_entropy(logits.float(), inputs.labels, reduction="none")
        ranking = losses.new_zeros(())
        if state.module is not None and maps:
            seen = [stage.detach() for stage in maps] if detached else maps
            ranking = setup.ranking(state.module(seen), losses)
    mean = losses.mean()
    if held != size:  # the ranking is a mean over the pairs that are here
        mean, ranking = losses.sum() / size, ranking * ((held // 2) / max(size // 2, 1))
    loss = mean + setup.training.ranking_weight * ranking
    correct = (logits.detach().argmax(dim=1) == inputs.labels).sum()
    if task is not None and batch is not None and unlabeled is not None:
        loss = loss + batch.weight * unlabeled.pseudo + task.method.fairness * unlabeled.fairness
    # Every process computes the unlabeled sums of the whole batch.
    beside = [value / setup.world.size for value in unlabeled_sums(batch, unlabeled, ranking)]
    return loss, JointSums(
        losses.detach().sum(), ranking.detach() * size, correct, torch.full_like(ranking, held), *beside
    )
