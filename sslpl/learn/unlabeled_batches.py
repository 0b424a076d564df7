"""The unlabeled term of the joint training: its batches, its loss and its averaged weights."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from sslpl.data.augmentation import Augmentation, take_draws
from sslpl.data.batches import fetch_groups, group_batches
from sslpl.data.images import to_device
from sslpl.distributed.batch_norm import can_skip_forward
from sslpl.distributed.collectives import all_gather, all_gather_with_gradient
from sslpl.distributed.world import World
from sslpl.models.embedding_head import embedding_width
from sslpl.seeds import build_seeded, rng, shuffled
from sslpl.setup import Setup
from sslpl.ssl.rules import pseudo_label_counts
from sslpl.ssl.task_method import (
    Criterion,
    LabeledOutputs,
    Outputs,
    TaskData,
    TaskLoss,
    TaskMethod,
    TaskOutputs,
    ViewKind,
)
from sslpl.state import State
from sslpl.types import Features

Network = Callable[[Tensor], Features]


class UnlabeledBatch(NamedTuple):
    """The unlabeled images of a step."""

    step: int  # of the joint training, from 0
    steps: int  # of the joint training
    rng: Generator  # of this step
    views: tuple[Tensor, ...]  # [H, C, h, w] each, those of the method; the shard of this process
    positions: Tensor  # [B], of the images of all processes among the unlabeled ones
    truth: Tensor  # [B], for analysis only


class LabeledBatch(NamedTuple):
    """The labeled images of a step: the shard of this process, as `World.paired_shard` splits a batch."""

    views: Tensor  # [H, C, h, w]
    labels: Tensor  # [H]
    index: Tensor  # type: ignore[assignment]  # [H], positions among the images to train on, in ascending order
    size: int  # of the batch over all processes


class TaskTraining(NamedTuple):
    """A task method and its state during a joint training."""

    method: TaskMethod
    criterion: Criterion
    average: nn.Module  # backbone with averaged weights
    order: Callable[[int], Tensor]  # pass -> random order of the unlabeled images
    world: World

    def views(self, batch: UnlabeledBatch) -> tuple[Tensor, ...]:
        """Returns the views that are forwarded together with the labeled ones, after them (published code)."""
        return batch.views[self.method.forwarded]

    def loss(self, labeled: LabeledBatch, batch: UnlabeledBatch, features: Features, network: Network) -> TaskLoss:
        """Computes the unlabeled loss from the features of the labeled images and then of all forwarded views.

        With several processes, each has a shard of the batch and computes the loss of the whole batch, which may not be
        a mean over images (FreeMatch's fairness), with the gradient of its own outputs; their sum is the whole's.
        """
        criterion, outputs, size = self.criterion, self.outputs(features), len(batch.positions)
        lengths = [len(labeled.views), *[len(batch.views[0])] * len(self.views(batch))]
        own_labeled, *views = split_outputs(outputs, lengths)
        views = [gather_outputs(self.world, view, size) for view in views]
        if self.method.has_teacher:
            views.insert(0, gather_outputs(self.world, self.teacher_outputs(batch, outputs), size))
        found = TaskOutputs(tuple(views), batch.positions, batch.step, batch.steps, rng=batch.rng)
        if criterion.reads_labeled:
            found = found._replace(labeled=self.labeled_outputs(labeled, own_labeled))
        if criterion.reads_images:
            found = found._replace(images=self.images(labeled, batch), forward=partial(self.forward, network))
        with torch.autocast(outputs.logits.device.type, enabled=False):
            loss: TaskLoss = criterion(found)
        return loss

    def outputs(self, features: Features) -> Outputs:
        """Returns logits and, if the criterion has a head, its outputs for the embeddings."""
        head = self.criterion.head
        return Outputs(features.logits.float(), None if head is None else head(features.embedding).float())

    def teacher_outputs(self, batch: UnlabeledBatch, outputs: Outputs) -> Outputs:
        """Returns the averaged weights' logits of this process's first views."""
        views = batch.views[0]
        with torch.no_grad(), frozen_statistics(self.average, len(batch.positions) == 1):
            skipped = can_skip_forward(self.average, views)
            return Outputs(outputs.logits[:0] if skipped else self.average(views).logits.float())

    def labeled_outputs(self, labeled: LabeledBatch, own: Outputs) -> LabeledOutputs:
        """Returns the outputs for the labeled batch of all processes, without gradient."""
        gather = partial(gather_labeled, self.world, labeled.size)
        outputs = Outputs(*(part if part is None else gather(part.detach()) for part in own))  # type: ignore[arg-type]
        return LabeledOutputs(outputs, gather(labeled.labels), gather(labeled.index))

    def images(self, labeled: LabeledBatch, batch: UnlabeledBatch) -> tuple[Tensor, ...]:
        """Returns the labeled views and each view of the unlabeled images, of all processes."""
        lengths = self.world.shard_sizes(len(batch.positions))
        unlabeled = (all_gather(self.world, view, lengths) for view in batch.views)
        return (gather_labeled(self.world, labeled.size, labeled.views), *unlabeled)

    def forward(self, network: Network, images: Tensor) -> Outputs:
        """Returns the outputs for images of all processes, of which this one forwards its shard."""
        own = images[self.world.shard(len(images))]
        return gather_outputs(self.world, self.outputs(network(own)), len(images))


def split_outputs(outputs: Outputs, lengths: Sequence[int]) -> list[Outputs]:
    """Splits outputs into parts of these numbers of images."""
    logits, projected = outputs
    parts = [None] * len(lengths) if projected is None else torch.split(projected, list(lengths))
    return list(map(Outputs, torch.split(logits, list(lengths)), parts))


def gather_outputs(world: World, outputs: Outputs, size: int) -> Outputs:
    """Returns the outputs for the `size` images of all processes, differentiable with respect to the local ones."""
    lengths = world.shard_sizes(size)
    logits, projected = (part if part is None else all_gather_with_gradient(world, part, lengths) for part in outputs)
    assert logits is not None
    return Outputs(logits, projected)


def gather_labeled(world: World, size: int, part: Tensor) -> Tensor:
    """Returns the values for all `size` images of a labeled batch, in its order."""
    if world.size == 1:
        return part
    shards = [world._replace(rank=rank).paired_shard(size) for rank in range(world.size)]
    whole = all_gather(world, part, [len(shard) for shard in shards])
    return whole[to_device(torch.cat(shards).argsort(), whole.device)]


def start_task(setup: Setup, state: State) -> TaskTraining | None:
    """Returns the task method's training state for this cycle, new or from the checkpoint; None without a method.

    `state` shares its tensors, so that checkpoints contain their current values.
    """
    method = setup.task_ssl
    if method is None:
        return None
    data = task_data(setup, state)
    criterion = build_seeded(lambda: method.criterion(data), setup.seed, f"task {state.cycle}").to(setup.device)
    average = copy.deepcopy(state.backbone).eval().requires_grad_(False)
    if state.average is not None and state.task is not None:
        average.load_state_dict(state.average)
        criterion.load_state_dict(state.task)
    if method.has_teacher:
        normalize_by_batch(average)
    state.average, state.task = average.state_dict(), criterion.state_dict()

    @lru_cache(maxsize=1)
    def order(pass_index: int) -> Tensor:
        return shuffled(state.pool.unlabeled, state.pool.size, rng(setup.seed, "task_order", state.cycle, pass_index))

    return TaskTraining(method, criterion, average, order, setup.world)


def task_data(setup: Setup, state: State) -> TaskData:
    """Returns what the criterion of this cycle's joint training depends on."""
    classes, labels, unlabeled = len(setup.dataset.class_names), state.labels(), len(state.pool.unlabeled)
    train_index = state.joint_train_index.sort().values
    frequency = labels[state.train_index].bincount(minlength=classes) / len(state.train_index)
    width = embedding_width(state.backbone, setup.dataset.train.shape)
    batch_sizes = min(setup.training.batch_size, len(train_index)), task_batch_size(setup, unlabeled)
    return TaskData(labels[train_index], frequency, unlabeled, width, *batch_sizes)


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
    images, unlabeled = setup.dataset.train, state.pool.unlabeled
    order = unlabeled_order(setup, task, len(unlabeled), epoch, steps) if task is not None else []
    if task is None or not order:
        yield from [None] * (steps - state.step)
        return
    first, size, total = state.step, len(order[0]), setup.training.epochs * steps

    augment = [
        view_augmentation(setup.augmentation, kind, steps * size, rng(setup.seed, purpose, state.cycle, epoch))
        for kind, purpose in view_purposes(task.method.views)
    ]
    groups = group_batches(order[first:], setup.device, images.shape)
    shard = setup.world.shard(size)
    shard_size = shard.stop - shard.start
    start, step = first * size, epoch * steps + first
    parts = [[batch[shard] for batch in group] for group in groups]
    for group, fetch in zip(groups, fetch_groups(images, parts), strict=True):
        index = torch.cat(group)
        span = torch.arange(start, start + len(index)).view(-1, size)[:, shard].flatten()
        views = [view(fetch, span) for view in augment]
        positions = to_device(torch.searchsorted(unlabeled, index), setup.device)
        truth = to_device(setup.true_labels[index], setup.device)
        parts_of = (torch.split(part, shard_size) if shard_size else (part,) * len(group) for part in views)
        targets = (torch.split(whole, size) for whole in (positions, truth))
        for views_of, *target in zip(zip(*parts_of, strict=True), *targets, strict=True):
            yield UnlabeledBatch(step, total, rng(setup.seed, "task_step", state.cycle, step), views_of, *target)
            step += 1
        start += len(index)


def view_purposes(views: Sequence[ViewKind]) -> list[tuple[ViewKind, str]]:
    """Returns each view with the purpose of its random numbers: task_weak, and task_weak_1 for a second weak one."""
    counts = [views[:k].count(kind) for k, kind in enumerate(views)]
    return [(kind, f"task_{kind}" + (f"_{count}" if count else "")) for kind, count in zip(views, counts, strict=True)]


def view_augmentation(
    augmentation: Augmentation, kind: ViewKind, count: int, generator: Generator
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function from images and their places among `count` ones to their weak or strong views."""
    if kind == "weak":
        weak_draws = augmentation.draw_weak(count, generator)
        return lambda images, span: augmentation.weak(images, take_draws(weak_draws, span))
    strong_draws = augmentation.draw_strong(count, generator)
    return lambda images, span: augmentation.strong(images, take_draws(strong_draws, span))


def unlabeled_sums(batch: UnlabeledBatch | None, loss: TaskLoss | None, like: Tensor) -> list[Tensor]:
    """Returns the last four of `JointSums` for a batch: its summed loss and its summed `pseudo_label_counts`."""
    if batch is None or loss is None:
        return [torch.zeros_like(like)] * 4
    counts = pseudo_label_counts(loss.target, loss.weight, batch.truth).sum(dim=0)
    return [loss.pseudo.detach() * len(batch.truth), *counts.unbind()]
