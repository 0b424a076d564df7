"""Joint training: the backbone learns the classes while the module learns to rank the losses."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.data.batches import epoch_batches, held_part, weak_views
from sslpl.data.images import to_device
from sslpl.distributed import adopt_weights, summed
from sslpl.learn.average import adopt_average, averaged, follow
from sslpl.learn.capture import CapturedSteps, JointStep
from sslpl.learn.evaluation import accuracy, predict
from sslpl.learn.normalization import synchronized
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
from sslpl.seeds import rng
from sslpl.setup import Setup, Step
from sslpl.state import Best, State, weights_of


def train(setup: Setup, state: State) -> Iterator[Step]:
    """Trains on the labeled images that are not trimmed or held out, from where `state` stands (SSLPM, Algorithm 1)."""
    training, device, alone = setup.training, setup.device, setup.world.size == 1
    adopt_weights(setup.world, state.backbone, state.module)
    index = trained_index(state)
    labels = state.labels().to(device)
    optimizer = joint_optimizer(setup, state)
    task = task_of(setup, state)
    step: JointStep = partial(joint_step, setup, state, optimizer)
    if setup.captures and task is None:
        step = CapturedSteps(step)
    snapshots = training.snapshot_epochs(setup.needs.snapshots) if setup.needs.snapshots else set()
    for epoch in range(state.epoch, training.epochs):
        moment = (state.cycle, epoch)
        batches = epoch_batches(index, state.pool.size, training.batch_size, rng(setup.seed, "order", *moment))
        draws = setup.augmentation.draw_weak(len(index), rng(setup.seed, "weak", *moment))
        held, draws = held_part(setup.world, batches, draws)
        decay = training.decay(epoch)
        set_rates(optimizer, (training.rate * decay, training.module_rate * decay))
        tally = torch.zeros(4 if task is None else 8, device=device) if state.tally is None else state.tally.to(device)
        truths = torch.split(labels[to_device(torch.cat(held), device)], [len(batch) for batch in held])
        views = weak_views(setup.dataset.train, setup.augmentation, device, held, draws, state.step)
        beside = unlabeled_batches(setup, state, task, epoch, len(batches))
        sizes = [len(batch) for batch in batches[state.step :]]
        for view, truth, batch, size in zip(views, truths[state.step :], beside, sizes, strict=True):
            if task is None and alone:
                tally += step(view, truth, training.detached(epoch))
            else:
                tally += joint_step(setup, state, optimizer, view, truth, training.detached(epoch), task, batch, size)
            state.tally, state.step = tally, state.step + 1
            steps, images = epoch * len(batches) + state.step, size + (len(batch.places) if batch else 0)
            if setup.teacher_decay is not None:
                state.teacher = averaged(state.teacher, state.backbone, setup.teacher_decay, steps)
            if task is not None:
                follow(task.average, state.backbone, task.method.average, steps)
            if state.step < len(batches):
                yield Step(images)
        if epoch in snapshots:
            state.snapshots.append(weights_of(state.backbone))
        metrics = epoch_metrics(tally, epoch) | validated(setup, state, task)
        state.tally, state.epoch, state.step = None, epoch + 1, 0
        yield Step(images, metrics)
    restore_best(state)
    adopt_average(state)


def trained_index(state: State) -> Tensor:
    """Positions of the labeled images that the joint training sees: those that are not trimmed or held out."""
    return without(state.learned, state.excluded)


def validated(setup: Setup, state: State, task: Task | None = None) -> dict[str, float]:
    """Accuracy on the held-out labels, of averaged weights if there are any.

    Copies the best networks so far, of equal ones the later, if asked to.
    """
    if len(state.held_out) == 0:
        return {}
    said = predict(setup, state.backbone if task is None else task.average, None, setup.dataset.train, state.held_out)
    now = accuracy(said.logits.cpu(), state.labels()[state.held_out])
    if setup.training.checkpoint == "best" and (state.best is None or now >= state.best.accuracy):
        module = None if state.module is None else weights_of(state.module)
        average = None if task is None else weights_of(task.average)
        state.best = Best(now, weights_of(state.backbone), module, average)
    state.row["validation_accuracy"] = now if state.best is None else state.best.accuracy
    return {"train/validation_accuracy": now}


def restore_best(state: State) -> None:
    """Gives the networks the weights of their best epoch, if that was kept."""
    if state.best is not None:
        state.backbone.load_state_dict(state.best.backbone)
        if state.module is not None and state.best.module is not None:
            state.module.load_state_dict(state.best.module)
        state.average = state.best.average
        state.best = None


def joint_optimizer(setup: Setup, state: State) -> torch.optim.SGD:
    """SGD over backbone and module, each with its own rate; continues what a checkpoint interrupted."""
    training = setup.training
    networks = [network for network in (state.backbone, state.module) if network is not None]
    # The rates are tensors on the device, so that a captured step reads them anew at each replay.
    groups = [{"params": list(network.parameters()), "lr": rate_tensor(setup.device)} for network in networks]
    optimizer = torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay, fused=True)
    return resumed(optimizer, state)


def rate_tensor(device: torch.device) -> Tensor | float:
    """Where a learning rate is kept."""
    return torch.zeros((), device=device) if device.type == "cuda" else 0.0


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, ...]) -> None:
    """Sets the learning rate of each group of parameters."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def resumed(optimizer: torch.optim.SGD, state: State) -> torch.optim.SGD:
    """The optimizer of the phase under way, with the momentum that a checkpoint holds."""
    if state.optimizer_state is not None:
        optimizer.load_state_dict(state.optimizer_state)
    state.optimizer, state.optimizer_state = optimizer, None
    return optimizer


def joint_step(
    setup: Setup,
    state: State,
    optimizer: torch.optim.Optimizer,
    views: Tensor,
    labels: Tensor,
    detached: bool,
    task: Task | None = None,
    batch: UnlabeledBatch | None = None,
    size: int | None = None,
) -> Tensor:
    """One step; returns the sums [cross-entropy, ranking loss, correct, images] of the batch on the device.

    With a task those of its unlabeled batch follow, see `unlabeled_sums`. The batches may be this process's parts of
    larger ones, the labeled one of `size` images: the losses are parts of its means, gradients and sums those over all.
    """
    state.backbone.train()
    held, unlabeled = len(views), None
    size = held if size is None else size
    # Compiled networks are compiled for whole batches: another size is not worth another compilation.
    network = state.backbone if size == setup.training.batch_size else state.backbone.forward
    optimizer.zero_grad(set_to_none=True)
    inputs = views if task is None or batch is None else torch.cat([views, *task.views(batch)])
    single = size == 1 and batch is None
    with setup.autocast(), frozen_statistics(state.backbone, single), synchronized(setup.world):
        logits, maps, _ = network(inputs)
        if task is not None and batch is not None:
            unlabeled = task.loss(batch, logits)
            logits, maps = logits[:held], tuple(stage[:held] for stage in maps)
        losses = cross_entropy(logits.float(), labels, reduction="none")
        ranking = losses.new_zeros(())
        if state.module is not None:
            predicted = state.module([stage.detach() for stage in maps] if detached else maps)
            ranking = setup.ranking(predicted, losses)
    mean = losses.mean()
    if held != size:  # the ranking is a mean over the pairs that are here
        mean, ranking = losses.sum() / size, ranking * ((held // 2) / max(size // 2, 1))
    loss = mean + setup.training.ranking_weight * ranking
    if task is not None and batch is not None and unlabeled is not None:
        loss = loss + batch.weight * unlabeled.pseudo + task.method.fairness * unlabeled.fairness
    loss.backward()  # type: ignore[no-untyped-call]
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    sums = [losses.detach().sum(), ranking.detach() * size, correct, torch.full_like(ranking, held)]
    if task is not None:
        sums += [value / setup.world.size for value in unlabeled_sums(batch, unlabeled, ranking)]  # all have the whole
    tally = torch.stack([value.float() for value in sums])
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    summed(setup.world, [*(weight.grad for weight in weights if weight.grad is not None), tally])
    optimizer.step()
    return tally


def epoch_metrics(tally: Tensor, epoch: int) -> dict[str, float]:
    """Means over an epoch, from the sums of its batches; FloatingPointError if a loss is not finite."""
    loss, ranking, correct, images, *unlabeled = tally.tolist()
    if not math.isfinite(loss + ranking + sum(unlabeled[:1])):
        raise FloatingPointError(
            f"the training loss is not finite in epoch {epoch}: lower training.rate or training.module_rate"
        )
    return {
        "train/loss": loss / images,
        "train/ranking_loss": ranking / images,
        "train/accuracy": correct / images,
        "train/epoch": float(epoch),
        **(unlabeled_metrics(*unlabeled) if unlabeled else {}),
    }
