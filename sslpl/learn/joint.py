"""Joint training: the backbone learns the classes while the module learns to rank the losses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.data.batches import epoch_batches, held_part, weak_views
from sslpl.data.images import to_device
from sslpl.distributed import adopt_weights, summed
from sslpl.learn.average import adopt_average, averaged, follow
from sslpl.learn.best import restore_best, validated
from sslpl.learn.capture import CapturedSteps
from sslpl.learn.divergence import check_joint_losses
from sslpl.learn.normalization import empty_handed, synchronized
from sslpl.learn.optimizers import joint_optimizer, set_rates
from sslpl.learn.unlabeled import (
    Task,
    UnlabeledBatch,
    frozen_statistics,
    task_of,
    unlabeled_batches,
    unlabeled_metrics,
    unlabeled_sums,
)
from sslpl.pool import without
from sslpl.seeds import rng, seeded_draws
from sslpl.setup import Setup, Step
from sslpl.state import State, weights_of


class Inputs(NamedTuple):
    """What a step sees: this process's part of a labeled batch, and of an unlabeled one beside it."""

    views: Tensor  # [H, C, h, w], of `size` in all processes
    labels: Tensor  # [H]
    size: int
    unlabeled: UnlabeledBatch | None = None

    @property
    def images(self) -> int:
        """How many images all processes see."""
        return self.size + (len(self.unlabeled.places) if self.unlabeled is not None else 0)


JointStep = Callable[[Inputs, bool], Tensor]  # inputs, detached -> sums


def train(setup: Setup, state: State) -> Iterator[Step]:
    """Trains on the labeled images that are not trimmed or held out, from where `state` stands (SSLPM, Algorithm 1)."""
    training = setup.training
    adopt_weights(setup.world, state.backbone, state.module)
    index, labels = trained_index(state), state.labels().to(setup.device)
    optimizer, task = joint_optimizer(setup, state), task_of(setup, state)
    step = stepper(setup, state, optimizer, task)
    snapshots = training.snapshot_epochs(setup.needs.snapshots) if setup.needs.snapshots else set()
    for epoch in range(state.epoch, training.epochs):
        order = rng(setup.seed, "order", state.cycle, epoch)
        batches = epoch_batches(index, state.pool.size, training.batch_size, order)
        decay = training.decay(epoch)
        set_rates(optimizer, (training.rate * decay, training.module_rate * decay))
        tally = no_sums(task) if state.tally is None else state.tally
        tally = tally.to(setup.device)
        for inputs in epoch_inputs(setup, state, task, epoch, batches, labels):
            with mask_draws(setup, state):
                tally += step(inputs, training.detached(epoch))
            state.tally, state.step = tally, state.step + 1
            follow_weights(setup, state, task, epoch * len(batches) + state.step)
            if state.step < len(batches):
                yield Step(inputs.images)
        if epoch in snapshots:
            state.snapshots.append(weights_of(state.backbone))
        metrics = epoch_metrics(tally, epoch) | validated(setup, state, task)
        state.tally, state.epoch, state.step = None, epoch + 1, 0
        yield Step(inputs.images, metrics)
    restore_best(state)
    adopt_average(state)


def stepper(setup: Setup, state: State, optimizer: torch.optim.SGD, task: Task | None) -> JointStep:
    """`joint_step`, as a CUDA graph where steps are captured and can be."""
    if not setup.captures or state.uncapturable or task is not None:
        return partial(joint_step, setup, state, optimizer, task=task)

    def step(views: Tensor, labels: Tensor, detached: bool) -> Tensor:
        return joint_step(setup, state, optimizer, Inputs(views, labels, len(views)), detached)

    def fall_back(reason: str) -> None:
        state.uncapturable = True
        setup.announce(f"training steps cannot be CUDA graphs ({reason}): they run one by one, which is slower")

    captured = CapturedSteps(step, fall_back)
    return lambda inputs, detached: captured(inputs.views, inputs.labels, detached)


def mask_draws(setup: Setup, state: State) -> AbstractContextManager[None]:
    """Seeds what a step's random layers draw: each process has masks of its own, for images of its own."""
    return seeded_draws(setup.device, setup.seed, "masks", state.cycle, state.epoch, state.step, setup.world.rank)


def epoch_inputs(
    setup: Setup, state: State, task: Task | None, epoch: int, batches: list[Tensor], labels: Tensor
) -> Iterator[Inputs]:
    """What the steps of an epoch see, from the state's step on."""
    first, images, device = state.step, setup.dataset.train, setup.device
    draws = setup.augmentation.draw_weak(sum(map(len, batches)), rng(setup.seed, "weak", state.cycle, epoch))
    held, draws = held_part(setup.world, batches, draws)
    truths = torch.split(labels[to_device(torch.cat(held), device)], [len(batch) for batch in held])
    views = weak_views(images, setup.augmentation, device, held, draws, first)
    beside = unlabeled_batches(setup, state, task, epoch, len(batches))
    yield from map(Inputs, views, truths[first:], map(len, batches[first:]), beside)


def follow_weights(setup: Setup, state: State, task: Task | None, steps: int) -> None:
    """Moves the averages of the weights after so many steps, those of the teacher of the module and of the task."""
    if setup.teacher_decay is not None:
        state.teacher = averaged(state.teacher, state.backbone, setup.teacher_decay, steps)
    if task is not None:
        follow(task.average, state.backbone, task.method.average, steps)


def trained_index(state: State) -> Tensor:
    """Positions of the labeled images that the joint training sees: those that are not trimmed or held out."""
    return without(state.learned, state.excluded)


def joint_step(
    setup: Setup,
    state: State,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    detached: bool,
    task: Task | None = None,
) -> Tensor:
    """One step; returns sums over the batch of all processes on the device, see `joint_loss`."""
    state.backbone.train()
    optimizer.zero_grad(set_to_none=True)
    loss, sums = joint_loss(setup, state, inputs, detached, task)
    if loss.requires_grad:  # not without any image
        loss.backward()  # type: ignore[no-untyped-call]
    tally = torch.stack([value.float() for value in sums])
    if setup.world.size > 1:
        summed(setup.world, [*gradients(optimizer), tally])
    optimizer.step()
    return tally


def gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Those of all weights that learn; zeros where this process has none, as another one may."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return [weight.grad for weight in weights if weight.grad is not None]


def joint_loss(
    setup: Setup, state: State, inputs: Inputs, detached: bool, task: Task | None
) -> tuple[Tensor, list[Tensor]]:
    """This process's part of the loss, and of the sums [cross-entropy, ranking loss, correct, images] of the batch.

    With a task those of `unlabeled_sums` follow.
    """
    batch, size, held = inputs.unlabeled, inputs.size, len(inputs.views)
    views = inputs.views if task is None or batch is None else torch.cat([inputs.views, *task.views(batch)])
    # Compiled networks are compiled for whole batches: another size is not worth another compilation.
    network = state.backbone if size == setup.training.batch_size else state.backbone.forward
    single = size == 1 and batch is None
    with setup.autocast(), frozen_statistics(state.backbone, single), synchronized(setup.world):
        if empty_handed(state.backbone, views):
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
    sums = [losses.detach().sum(), ranking.detach() * size, correct, torch.full_like(ranking, held)]
    if task is None:
        return loss, sums
    if batch is not None and unlabeled is not None:
        loss = loss + batch.weight * unlabeled.pseudo + task.method.fairness * unlabeled.fairness
    # All processes have the whole of these.
    return loss, [*sums, *(value / setup.world.size for value in unlabeled_sums(batch, unlabeled, ranking))]


def no_sums(task: Task | None) -> Tensor:
    """The tally of no step."""
    return torch.zeros(4 if task is None else 8)


def epoch_metrics(tally: Tensor, epoch: int) -> dict[str, float]:
    """Means over an epoch, from the sums of its batches; FloatingPointError if a loss is not finite."""
    loss, ranking, correct, images, *unlabeled = sums = tally.tolist()
    check_joint_losses(sums, epoch)
    return {
        "train/loss": loss / images,
        "train/ranking_loss": ranking / images,
        "train/accuracy": correct / images,
        "train/epoch": float(epoch),
        **(unlabeled_metrics(*unlabeled) if unlabeled else {}),
    }
