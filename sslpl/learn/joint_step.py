"""Joint training steps: the backbone learns to classify while the module learns to rank the losses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.distributed.batch_norm import can_skip_forward, synchronized_batch_norm
from sslpl.distributed.collectives import all_reduce_sum
from sslpl.learn.sums import JointSums
from sslpl.learn.unlabeled_batches import (
    LabeledBatch,
    Network,
    TaskTraining,
    UnlabeledBatch,
    frozen_statistics,
    unlabeled_sums,
)
from sslpl.models.embedding_head import embedding_width
from sslpl.models.fused_norm import fused_batch_norms
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.weight_copies import WeightCopies
from sslpl.seeds import seeded_draws
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import Features


class JointInputs(NamedTuple):
    """The inputs of a step: this process's shards of a labeled and an unlabeled batch."""

    views: Tensor  # [H, C, h, w], the shard of this process
    labels: Tensor  # [H]
    size: int  # of the labeled batch over all processes
    unlabeled: UnlabeledBatch | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # [H], positions as in `LabeledBatch`, with a task method

    @property
    def images(self) -> int:
        """The number of images of the step over all processes."""
        return self.size + (len(self.unlabeled.positions) if self.unlabeled is not None else 0)


class StepResources(NamedTuple):
    """What the steps of a training phase share, so as to be faster; see `Acceleration`."""

    copies: WeightCopies | None = None
    fused_norms: bool = False
    streams: tuple[torch.cuda.Stream, ...] = ()  # for the levels of the module


NO_RESOURCES = StepResources()


def step_resources(setup: Setup, state: State) -> StepResources:
    """Returns what a training phase uses of `setup.acceleration`; batch norms of several processes are not fused."""
    chosen, module = setup.acceleration, state.module
    levels = len(module.levels) if isinstance(module, LossPredictionModule) and setup.device.type == "cuda" else 0
    return StepResources(
        WeightCopies(state.backbone, chosen.overlap) if chosen.copied_weights and setup.bfloat16 else None,
        chosen.fused_norms and setup.world.size == 1,
        tuple(torch.cuda.Stream() for _ in range(levels)) if chosen.overlap else (),  # type: ignore[no-untyped-call]
    )


JointStep = Callable[[JointInputs, bool], Tensor]  # inputs, detached -> sums


def mask_draws(setup: Setup, state: State) -> AbstractContextManager[None]:
    """Seeds the random layers of a step (dropout masks), differently on each rank."""
    return seeded_draws(setup.device, setup.seed, "masks", state.cycle, state.epoch, state.step, setup.world.rank)


def joint_step(
    setup: Setup,
    state: State,
    optimizer: torch.optim.Optimizer,
    inputs: JointInputs,
    detached: bool,
    task: TaskTraining | None = None,
    resources: StepResources = NO_RESOURCES,
) -> Tensor:
    """Takes one step; returns the sums over the batch of all processes [8], on the device, ordered as `JointSums`."""
    copies, full = resources.copies, inputs.size == setup.training.batch_size
    state.backbone.train()
    optimizer.zero_grad(set_to_none=True)
    with kernel_search(full), nullcontext() if copies is None else copies.use():
        loss, sums = joint_loss(setup, state, inputs, detached, task, resources)
        if loss.requires_grad:  # it does not without images
            loss.backward()  # type: ignore[no-untyped-call]
    if copies is not None:
        copies.store_gradients()
    total = torch.stack([value.float() for value in sums])
    if setup.world.size > 1:
        all_reduce_sum(setup.world, [*gradients(optimizer), total])
    optimizer.step()
    return total


@contextmanager
def kernel_search(worthwhile: bool) -> Iterator[None]:
    """Context manager in which a GPU's library searches for its fastest convolutions only if this is worthwhile.

    It searches for every new batch size; an epoch has a single batch that is not full.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and worthwhile
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns the gradients of all trainable weights; zeros where this process has none but another may have."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return [weight.grad for weight in weights if weight.grad is not None]


def joint_loss(
    setup: Setup,
    state: State,
    inputs: JointInputs,
    detached: bool,
    task: TaskTraining | None,
    resources: StepResources = NO_RESOURCES,
) -> tuple[Tensor, JointSums[Tensor]]:
    """Computes this process's part of the loss and of the sums of the batch."""
    unlabeled, size, shard_size = inputs.unlabeled, inputs.size, len(inputs.views)
    views = inputs.views if task is None or unlabeled is None else torch.cat([inputs.views, *task.views(unlabeled)])
    # Networks are compiled for full batches: another size is not worth a recompilation.
    network = state.backbone if size == setup.training.batch_size else state.backbone.forward
    single = size == 1 and unlabeled is None
    with (
        setup.autocast(),
        frozen_statistics(state.backbone, single),
        synchronized_batch_norm(setup.world),
        fused_batch_norms(resources.fused_norms),
    ):
        features = forward_views(setup, state, network, views)
        logits, maps, task_loss = features.logits, features.maps, None
        if task is not None and unlabeled is not None:  # slice only if needed: its gradient copies the whole stage
            assert inputs.index is not None
            labeled = LabeledBatch(inputs.views, inputs.labels, inputs.index, size)
            task_loss = task.loss(labeled, unlabeled, features, partial(forward_views, setup, state, network))
            logits, maps = logits[:shard_size], tuple(stage[:shard_size] for stage in maps)
        losses = cross_entropy(logits.float(), inputs.labels, reduction="none")
        ranking = losses.new_zeros(())
        if state.module is not None and maps:
            module_inputs = tuple(stage.detach() for stage in maps) if detached else maps
            ranking = setup.ranking(state.module(module_inputs, resources.streams), losses)
    trained_losses = smoothed(losses, logits, setup.training.label_smoothing)
    mean = trained_losses.mean()
    if shard_size != size:  # the ranking loss is a mean over the pairs of this shard
        mean, ranking = trained_losses.sum() / size, ranking * ((shard_size // 2) / max(size // 2, 1))
    if task_loss is not None and task_loss.supervised is not None:
        mean = task_loss.supervised
    loss = mean + setup.training.ranking_weight * ranking
    correct = (logits.detach().argmax(dim=1) == inputs.labels).sum()
    if task is not None and unlabeled is not None and task_loss is not None:
        loss = loss + task.method.weight_at(unlabeled.step, unlabeled.steps) * task_loss.pseudo + task_loss.auxiliary
    # Every process computes the unlabeled sums of the whole batch, which are summed over processes.
    unlabeled_terms = [value / setup.world.size for value in unlabeled_sums(unlabeled, task_loss, ranking)]
    return loss, JointSums(
        losses.detach().sum(), ranking.detach() * size, correct, torch.full_like(ranking, shard_size), *unlabeled_terms
    )


def forward_views(setup: Setup, state: State, network: Network, views: Tensor) -> Features:
    """Returns the features of views, of which this process may have none."""
    if can_skip_forward(state.backbone, views):
        width = embedding_width(state.backbone, setup.dataset.train.shape)
        return Features(views.new_zeros(0, len(setup.dataset.class_names)), (), views.new_zeros(0, width))
    with setup.autocast():
        return network(views)


def smoothed(losses: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """Returns the cross-entropies [B] against targets of which a share is spread evenly over all classes.

    The module ranks the losses without it (Szegedy et al. 2016; which losses are ranked is ours).
    """
    if smoothing == 0:
        return losses
    return (1 - smoothing) * losses - smoothing * logits.float().log_softmax(dim=1).mean(dim=1)
