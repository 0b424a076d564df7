"""The train phase: joint training of the backbone and the loss prediction module."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from sslpl.data.augmentation import WeakDraws
from sslpl.data.batches import alternating_flips, epoch_batches, shard_batches, weak_views
from sslpl.data.images import to_device
from sslpl.distributed.collectives import broadcast_weights
from sslpl.learn.averages import update_average, update_teacher, use_average
from sslpl.learn.batch_statistics import estimate_statistics, with_estimated_statistics
from sslpl.learn.best_epoch import restore_best_epoch, validate_epoch
from sslpl.learn.cuda_graphs import CapturedSteps, fall_back
from sslpl.learn.divergence import check_joint_losses
from sslpl.learn.head_training import train_head
from sslpl.learn.joint_step import JointInputs, JointStep, joint_step, mask_draws, step_resources
from sslpl.learn.optimizers import joint_optimizer, set_rates, weight_groups
from sslpl.learn.sums import JointSums, initial_sums, joint_means
from sslpl.learn.unlabeled_batches import TaskTraining, start_task, unlabeled_batches
from sslpl.seeds import rng
from sslpl.setup import Setup
from sslpl.state import State, weights_of
from sslpl.training import HeadTraining
from sslpl.types import Step


def train(setup: Setup, state: State) -> Iterator[Step]:
    """Trains on the labeled images that are not excluded or held out, from the step of `state` (SSLPM, Algorithm 1)."""
    broadcast_weights(setup.world, state.backbone, state.module)
    if isinstance(setup.training, HeadTraining):
        yield head_step(setup, state, setup.training)
        return
    index, labels = state.joint_train_index, state.labels().to(setup.device)
    setup = setup._replace(training=setup.schedule(state.module is not None).joint_training(len(index)))
    training, task = setup.training, start_task(setup, state)
    factor: float | None = None
    rates = [group.rate for group in weight_groups(training, state.backbone, state.module)]
    optimizer = joint_optimizer(setup, state, None if task is None else task.criterion.head)
    step = training_step(setup, state, optimizer, task)
    snapshots = training.snapshot_epochs(setup.needs.snapshots) if setup.needs.snapshots else set()
    draws = draw_joint_epoch(setup, state, index, state.epoch)
    for epoch in range(state.epoch, training.epochs):
        batches = draws.batches
        sums = initial_sums(setup.device, state.sums, len(JointSums._fields))
        for inputs in epoch_inputs(setup, state, task, epoch, draws, labels):
            previous, factor = factor, training.rate_factor(epoch * len(batches) + state.step, len(batches))
            if factor != previous:
                set_rates(optimizer, [rate * factor for rate in rates])
            with mask_draws(setup, state):
                sums += step(inputs, training.detached(epoch))
            state.sums, state.step = sums, state.step + 1
            update_averages(setup, state, task, epoch * len(batches) + state.step)
            if state.step < len(batches):
                yield Step(inputs.images)
        if epoch in snapshots:
            state.snapshots.append(with_estimated_statistics(setup, state, weights_of(state.backbone)))
        if epoch + 1 < training.epochs:  # while a GPU is still busy with this epoch
            draws = draw_joint_epoch(setup, state, index, epoch + 1)
        totals = JointSums(*setup.turns.wait_for(sums).tolist())
        check_joint_losses(totals, epoch)
        metrics = {"train/epoch": float(epoch)} | joint_means(totals) | validate_epoch(setup, state, task)
        state.sums, state.epoch, state.step = None, epoch + 1, 0
        yield Step(inputs.images, metrics)
    restore_best_epoch(state)
    use_average(state)
    estimate_statistics(setup, state, state.backbone)
    if state.teacher is not None:
        state.teacher = with_estimated_statistics(setup, state, state.teacher)


def head_step(setup: Setup, state: State, training: HeadTraining) -> Step:
    """Trains a small head in a single step, which a resumed run repeats from its start."""
    totals = JointSums(*setup.turns.wait_for(train_head(setup, state, training)).tolist())
    check_joint_losses(totals, epoch=0)
    state.epoch = 1
    metrics = {"train/epoch": 0.0} | joint_means(totals) | validate_epoch(setup, state)
    return Step(int(totals.labeled_images) * training.steps, metrics)


def training_step(setup: Setup, state: State, optimizer: torch.optim.SGD, task: TaskTraining | None) -> JointStep:
    """Returns `joint_step`, captured as a CUDA graph if this is enabled and possible."""
    resources = step_resources(setup, state)
    if not setup.capture_steps or state.uncapturable or task is not None:
        return partial(joint_step, setup, state, optimizer, task=task, resources=resources)

    def step(tensors: Sequence[Tensor], detached: bool) -> Tensor:
        views, labels = tensors
        inputs = JointInputs(views, labels, len(views))
        return joint_step(setup, state, optimizer, inputs, detached, resources=resources)

    captured = CapturedSteps(step, partial(fall_back, setup, state))
    return lambda inputs, detached: captured((inputs.views, inputs.labels), detached)


class JointEpoch(NamedTuple):
    """The labeled batches of an epoch, and the augmentation parameters of this process's shards of them."""

    batches: list[Tensor]
    shards: list[Tensor]
    draws: WeakDraws


def draw_joint_epoch(setup: Setup, state: State, index: Tensor, epoch: int) -> JointEpoch:
    """Draws the batches and the augmentation parameters of an epoch."""
    order = rng(setup.seed, "order", state.cycle, epoch)
    batches = epoch_batches(index, state.pool.size, setup.training.batch_size, order)
    draws = setup.augmentation.draw_weak(len(index), rng(setup.seed, "weak", state.cycle, epoch))
    if setup.training.alternating_flips and setup.augmentation.flip:
        flips = rng(setup.seed, "flips", state.cycle)
        draws = draws._replace(flip=alternating_flips(torch.cat(batches), state.pool.size, epoch, flips))
    return JointEpoch(batches, *shard_batches(setup.world, batches, draws))


def epoch_inputs(
    setup: Setup, state: State, task: TaskTraining | None, epoch: int, drawn: JointEpoch, labels: Tensor
) -> Iterator[JointInputs]:
    """Yields the inputs of the remaining steps of an epoch."""
    first, images, device = state.step, setup.dataset.train, setup.device
    batches, shards = drawn.batches, drawn.shards
    targets = torch.split(labels[to_device(torch.cat(shards), device)], [len(batch) for batch in shards])
    views = weak_views(images, setup.augmentation, device, shards, drawn.draws, first)
    unlabeled = unlabeled_batches(setup, state, task, epoch, len(batches))
    index: Iterator[Tensor | None] = repeat(None)
    if task is not None:
        train_index = state.joint_train_index.sort().values
        index = (to_device(torch.searchsorted(train_index, shard), device) for shard in shards[first:])
    yield from map(JointInputs, views, targets[first:], map(len, batches[first:]), unlabeled, index)


def update_averages(setup: Setup, state: State, task: TaskTraining | None, steps: int) -> None:
    """Updates the averaged weights after `steps` steps: those of the module's teacher and of the task method."""
    if setup.teacher_decay is not None:
        state.teacher = update_teacher(state.teacher, state.backbone, setup.teacher_decay, steps)
    if task is not None:
        update_average(task.average, state.backbone, task.method.average, steps)
