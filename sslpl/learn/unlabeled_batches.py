"""The unlabeled term of the joint training: its batches, its loss and its averaged weights."""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslpl.data.augmentation import take_draws
from sslpl.data.batches import fetch_groups, group_batches
from sslpl.data.images import to_device
from sslpl.distributed.batch_norm import can_skip_forward
from sslpl.distributed.collectives import all_gather, all_gather_with_gradient
from sslpl.distributed.world import World
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup
from sslpl.ssl.backbone_loss import TaskCriterion, TaskLoss, TaskSSL
from sslpl.ssl.rules import pseudo_label_counts
from sslpl.state import State


class UnlabeledBatch(NamedTuple):
    """The unlabeled images of a step, and the weight of their loss."""

    weight: float  # of the unlabeled term
    weak: Tensor  # [H, C, h, w], views to pseudo-label; the shard of this process
    student: Tensor  # [H, C, h, w], views of the loss, perhaps the same
    positions: Tensor  # [B], of the images of all processes among the unlabeled ones
    truth: Tensor  # [B], for analysis only


class TaskTraining(NamedTuple):
    """A task method and its state during a joint training."""

    method: TaskSSL
    criterion: TaskCriterion
    average: nn.Module  # backbone with averaged weights
    order: Callable[[int], Tensor]  # pass -> random order of the unlabeled images
    world: World

    def views(self, batch: UnlabeledBatch) -> list[Tensor]:
        """Returns the views that are forwarded together with the labeled ones, after them (published code)."""
        return [batch.weak, batch.student][-self.method.num_forward_views :]

    def loss(self, batch: UnlabeledBatch, logits: Tensor) -> TaskLoss:
        """Computes the unlabeled loss from the logits of all forwarded views.

        With several processes, each has a shard of the batch and computes the loss of the whole batch, which may not be
        a mean over images (FreeMatch's fairness), with the gradient of its own logits; the sum of these is the whole's.
        """
        shard_size, size = len(batch.weak), len(batch.positions)
        task_logits = logits[len(logits) - self.method.num_forward_views * shard_size :]
        if not self.method.teacher:
            weak_logits = task_logits[:shard_size]
        else:
            with torch.no_grad(), frozen_statistics(self.average, size == 1):
                no_forward = can_skip_forward(self.average, batch.weak)
                weak_logits = task_logits if no_forward else self.average(batch.weak).logits
        lengths = self.world.shard_sizes(size)
        weak_logits = all_gather(self.world, weak_logits.detach(), lengths)
        student_logits = all_gather_with_gradient(self.world, task_logits[len(task_logits) - shard_size :], lengths)
        loss: TaskLoss = self.criterion(weak_logits, student_logits, batch.positions)
        return loss


def start_task(setup: Setup, state: State) -> TaskTraining | None:
    """Returns the task method's training state for this cycle, new or from the checkpoint; None without a method.

    `state` shares its tensors, so that checkpoints contain their current values.
    """
    method = setup.task_ssl
    if method is None:
        return None
    classes, labels = len(setup.dataset.class_names), state.labels()[state.train_index]
    frequency = labels.bincount(minlength=classes) / len(labels)
    criterion = TaskCriterion(method, frequency, len(state.pool.unlabeled)).to(setup.device)
    average = copy.deepcopy(state.backbone).eval().requires_grad_(False)
    if state.average is not None and state.task is not None:
        average.load_state_dict(state.average)
        criterion.load_state_dict(state.task)
    if method.teacher:
        normalize_by_batch(average)
    state.average, state.task = average.state_dict(), criterion.state_dict()

    @lru_cache(maxsize=1)
    def order(pass_index: int) -> Tensor:
        return shuffled(state.pool.unlabeled, state.pool.size, rng(setup.seed, "task_order", state.cycle, pass_index))

    return TaskTraining(method, criterion, average, order, setup.world)


def normalize_by_batch(network: nn.Module) -> None:
    """Makes batch norms use batch statistics without updating the running ones; dropout stays off.

    Teachers do so (Tarvainen and Valpola 2017; the published codes).
    """
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.momentum = 0.0


class frozen_statistics:
    """Context manager in which batch norms use running statistics, because a single image has no variance (ours)."""

    def __init__(self, network: nn.Module, active: bool) -> None:
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training] if active else []

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.eval()

    def __exit__(self, *_: object) -> None:
        for norm in self.norms:
            norm.train()


def task_batch_size(setup: Setup, unlabeled: int) -> int:
    """Returns the number of unlabeled images of a step: at most all of them."""
    return 0 if setup.task_ssl is None else min(setup.task_ssl.ratio * setup.training.batch_size, unlabeled)


def unlabeled_order(setup: Setup, task: TaskTraining, unlabeled: int, epoch: int, steps: int) -> list[Tensor]:
    """Returns the positions of the unlabeled images of each step of an epoch with `steps` steps.

    Passes over all unlabeled images continue across epochs; the incomplete last batch of a pass is dropped.
    """
    size = task_batch_size(setup, unlabeled)
    if size == 0:
        return []
    batch_indices = (divmod(step, unlabeled // size) for step in range(epoch * steps, (epoch + 1) * steps))
    return [task.order(pass_index)[k * size : (k + 1) * size] for pass_index, k in batch_indices]


def unlabeled_batches(
    setup: Setup, state: State, task: TaskTraining | None, epoch: int, steps: int
) -> Iterator[UnlabeledBatch | None]:
    """Yields the unlabeled batch of each remaining step of an epoch; None without unlabeled images."""
    images, augmentation, unlabeled = setup.dataset.train, setup.augmentation, state.pool.unlabeled
    order = unlabeled_order(setup, task, len(unlabeled), epoch, steps) if task is not None else []
    if task is None or not order:
        yield from [None] * (steps - state.step)
        return
    first, size, total = state.step, len(order[0]), setup.training.epochs * steps

    def generator(purpose: str) -> torch.Generator:
        return rng(setup.seed, purpose, state.cycle, epoch)

    weak_draws = augmentation.draw_weak(steps * size, generator("task_weak"))
    second_weak_draws = augmentation.draw_weak(steps * size, generator("task_weak_1"))
    strong_draws = augmentation.draw_strong(steps * size, generator("task_strong"))
    groups = group_batches(order[first:], setup.device, images.shape)
    shard = setup.world.shard(size)
    shard_size = shard.stop - shard.start
    start, step = first * size, epoch * steps + first
    parts = [[batch[shard] for batch in group] for group in groups]
    for group, fetch in zip(groups, fetch_groups(images, parts), strict=True):
        index = torch.cat(group)
        span = torch.arange(start, start + len(index)).view(-1, size)[:, shard].flatten()
        weak = augmentation.weak(fetch, take_draws(weak_draws, span))
        student = weak
        if task.method.view == "weak":
            student = augmentation.weak(fetch, take_draws(second_weak_draws, span))
        elif task.method.view == "strong":
            student = augmentation.strong(fetch, take_draws(strong_draws, span))
        positions = to_device(torch.searchsorted(unlabeled, index), setup.device)
        truth = to_device(setup.true_labels[index], setup.device)
        views = (torch.split(part, shard_size) if shard_size else (part,) * len(group) for part in (weak, student))
        targets = (torch.split(whole, size) for whole in (positions, truth))
        for batch in zip(*views, *targets, strict=True):
            yield UnlabeledBatch(task.method.weight_at(step, total), *batch)
            step += 1
        start += len(index)


def unlabeled_sums(batch: UnlabeledBatch | None, loss: TaskLoss | None, like: Tensor) -> list[Tensor]:
    """Returns the last four of `JointSums` for a batch: its summed loss and its summed `pseudo_label_counts`."""
    if batch is None or loss is None:
        return [torch.zeros_like(like)] * 4
    counts = pseudo_label_counts(loss.target, loss.weight, batch.truth).sum(dim=0)
    return [loss.pseudo.detach() * len(batch.truth), *counts.unbind()]
