"""The unlabeled term of the joint training: which images a step sees beside the labeled ones, averaged weights."""

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
from sslpl.ssl.rules import pseudo_label_counts
from sslpl.ssl.task import TaskCriterion, TaskLoss, TaskSSL
from sslpl.state import State


class UnlabeledBatch(NamedTuple):
    """What a step sees of its unlabeled images, and how much they count."""

    weight: float  # of the term
    weak: Tensor  # [H, C, h, w], pseudo-labeled; those of this process
    learned: Tensor  # [H, C, h, w], learned from; the same views where they are not others
    places: Tensor  # [B], of all processes' images among the unlabeled ones
    truth: Tensor  # [B], for analysis alone


class TaskTraining(NamedTuple):
    """What a method keeps from step to step of a training."""

    method: TaskSSL
    criterion: TaskCriterion
    average: nn.Module  # the backbone with averaged weights
    order: Callable[[int], Tensor]  # of the unlabeled images in each pass over them
    world: World

    def views(self, batch: UnlabeledBatch) -> list[Tensor]:
        """What passes the backbone behind the labeled views, in one forward pass with them (published code)."""
        return [batch.weak, batch.learned][-self.method.views_passed :]

    def loss(self, batch: UnlabeledBatch, logits: Tensor) -> TaskLoss:
        """The unlabeled term, from the logits of all that passed the backbone.

        Several processes hold a part of the batch each. All have the loss of the whole, which may be no mean over
        images (FreeMatch's fairness), and each the gradient of its own logits: their sum is the whole's.
        """
        held, size = len(batch.weak), len(batch.places)
        passed = logits[len(logits) - self.method.views_passed * held :]
        if not self.method.teacher:
            said = passed[:held]
        else:
            with torch.no_grad(), frozen_statistics(self.average, size == 1):
                nothing = can_skip_forward(self.average, batch.weak)
                said = passed if nothing else self.average(batch.weak).logits
        lengths = self.world.shard_sizes(size)
        said = all_gather(self.world, said.detach(), lengths)
        learned = all_gather_with_gradient(self.world, passed[len(passed) - held :], lengths)
        loss: TaskLoss = self.criterion(said, learned, batch.places)
        return loss


def start_task(setup: Setup, state: State) -> TaskTraining | None:
    """What the method asks for in this cycle, new or as a checkpoint holds it; None without a method.

    The state holds the same tensors from here on: what a step changes in them is saved with it.
    """
    method = setup.task_ssl
    if method is None:
        return None
    classes, learned = len(setup.dataset.class_names), state.labels()[state.train_index]
    frequency = learned.bincount(minlength=classes) / len(learned)
    criterion = TaskCriterion(method, frequency, len(state.pool.unlabeled)).to(setup.device)
    average = copy.deepcopy(state.backbone).eval().requires_grad_(False)
    if state.average is not None and state.task is not None:
        average.load_state_dict(state.average)
        criterion.load_state_dict(state.task)
    if method.teacher:
        normalize_by_batch(average)
    state.average, state.task = average.state_dict(), criterion.state_dict()

    @lru_cache(maxsize=1)
    def order(turn: int) -> Tensor:
        return shuffled(state.pool.unlabeled, state.pool.size, rng(setup.seed, "task_order", state.cycle, turn))

    return TaskTraining(method, criterion, average, order, setup.world)


def normalize_by_batch(network: nn.Module) -> None:
    """Has batch norms use the statistics of what they see and leave the running ones alone; dropout stays off.

    So does a teacher (Tarvainen and Valpola 2017; the published codes).
    """
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.momentum = 0.0


class frozen_statistics:
    """Batch norm uses its running statistics inside: a single image has no variance to normalize by (ours)."""

    def __init__(self, network: nn.Module, active: bool) -> None:
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training] if active else []

    def __enter__(self) -> None:
        for norm in self.norms:
            norm.eval()

    def __exit__(self, *_: object) -> None:
        for norm in self.norms:
            norm.train()


def task_batch_size(setup: Setup, unlabeled: int) -> int:
    """How many unlabeled images a step sees: as many as there are if these are too few."""
    return 0 if setup.task_ssl is None else min(setup.task_ssl.ratio * setup.training.batch_size, unlabeled)


def unlabeled_order(setup: Setup, task: TaskTraining, unlabeled: int, epoch: int, steps: int) -> list[Tensor]:
    """The unlabeled images of each step of an epoch of so many steps.

    Passes over all of them follow one another across the epochs; what fills no batch waits for the next pass.
    """
    size = task_batch_size(setup, unlabeled)
    if size == 0:
        return []
    moments = (divmod(step, unlabeled // size) for step in range(epoch * steps, (epoch + 1) * steps))
    return [task.order(turn)[k * size : (k + 1) * size] for turn, k in moments]


def unlabeled_batches(
    setup: Setup, state: State, task: TaskTraining | None, epoch: int, steps: int
) -> Iterator[UnlabeledBatch | None]:
    """What the steps of an epoch see of unlabeled images, from the state's step on; None without any left."""
    images, augmentation, unlabeled = setup.dataset.train, setup.augmentation, state.pool.unlabeled
    order = unlabeled_order(setup, task, len(unlabeled), epoch, steps) if task is not None else []
    if task is None or not order:
        yield from [None] * (steps - state.step)
        return
    first, size, total = state.step, len(order[0]), setup.training.epochs * steps

    def stream(purpose: str) -> torch.Generator:
        return rng(setup.seed, purpose, state.cycle, epoch)

    asked = augmentation.draw_weak(steps * size, stream("task_weak"))
    other = augmentation.draw_weak(steps * size, stream("task_weak_1"))
    strong = augmentation.draw_strong(steps * size, stream("task_strong"))
    groups = group_batches(order[first:], setup.device, images.shape)
    own = setup.world.shard(size)
    held = own.stop - own.start
    start, step = first * size, epoch * steps + first
    parts = [[batch[own] for batch in group] for group in groups]
    for group, fetch in zip(groups, fetch_groups(images, parts), strict=True):
        index = torch.cat(group)
        span = torch.arange(start, start + len(index)).view(-1, size)[:, own].flatten()
        weak = augmentation.weak(fetch, take_draws(asked, span))
        learned = weak
        if task.method.view == "weak":
            learned = augmentation.weak(fetch, take_draws(other, span))
        elif task.method.view == "strong":
            learned = augmentation.strong(fetch, take_draws(strong, span))
        places = to_device(torch.searchsorted(unlabeled, index), setup.device)
        truth = to_device(setup.true_labels[index], setup.device)
        views = (torch.split(part, held) if held else (part,) * len(group) for part in (weak, learned))
        known = (torch.split(whole, size) for whole in (places, truth))
        for batch in zip(*views, *known, strict=True):
            yield UnlabeledBatch(task.method.weight_at(step, total), *batch)
            step += 1
        start += len(index)


def unlabeled_sums(batch: UnlabeledBatch | None, loss: TaskLoss | None, like: Tensor) -> list[Tensor]:
    """The last four of `JointSums` for a batch: the sum of its losses, and those of `pseudo_label_counts`."""
    if batch is None or loss is None:
        return [torch.zeros_like(like)] * 4
    counts = pseudo_label_counts(loss.target, loss.weight, batch.truth).sum(dim=0)
    return [loss.pseudo.detach() * len(batch.truth), *counts.unbind()]
