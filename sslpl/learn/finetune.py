"""Semi-supervised fine-tune: with the backbone frozen, the module learns from labeled and unlabeled images."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslpl.data.augment import StrongDraws, WeakDraws, rows
from sslpl.data.batches import epoch_batches, unlabeled_batch_size
from sslpl.learn.joint import resumed
from sslpl.learn.ssl import confident, pseudo_loss
from sslpl.models.backbones import folded
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.seeds import rng
from sslpl.setup import Setup, Step
from sslpl.state import State


class Measured(NamedTuple):
    """What the frozen backbone says of a batch: all that the module needs to learn from it."""

    summaries: tuple[Tensor, ...]
    loss: Tensor  # [B], to rank


class Plan(NamedTuple):
    """One epoch's batches and draws: of the labeled images, and of the unlabeled ones beside them."""

    labeled: list[Tensor]
    labeled_draws: WeakDraws
    unlabeled: list[Tensor]  # empty without an unlabeled term
    weak_draws: WeakDraws | None
    strong_draws: StrongDraws | None


def finetune(setup: Setup, state: State) -> Iterator[Step]:
    """Trains the module on the whole labeled set and, beside it, on pseudo-labeled images (SSLPM, section III)."""
    training, module = setup.training, state.module
    assert isinstance(module, LossPredictionModule)
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=training.finetune_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,
    )
    optimizer = resumed(optimizer, state)
    frozen = folded(state.backbone)
    labels, hidden = state.labels().to(setup.device), setup.dataset.train_labels.to(setup.device)
    tally = state.tally if isinstance(state.tally, Tensor) else torch.zeros(6, device=setup.device)
    state.tally = tally
    for epoch in range(state.epoch, training.finetune_epochs):
        plan = epoch_plan(setup, state, epoch)
        for measured in measured_batches(setup, frozen, module, plan, labels, hidden, tally, state.step):
            tally[:3] += finetune_step(setup, module, optimizer, *measured)
            state.step += 1
            images = len(plan.labeled[state.step - 1]) + batch_length(plan.unlabeled, state.step - 1)
            if state.step < len(plan.labeled):
                yield Step(images)
        state.epoch, state.step = epoch + 1, 0
        metrics = epoch_metrics(tally, epoch)
        tally[:3] = 0  # the losses are means over an epoch, the pseudo-labels over the phase
        yield Step(images, metrics)
    state.row.update(pseudo_label_quality(tally))


def epoch_plan(setup: Setup, state: State, epoch: int) -> Plan:
    """Draws one epoch: which images are seen when, and how they are augmented."""
    training, pool, augmentation = setup.training, state.pool, setup.augmentation
    moment = (state.cycle, epoch)
    labeled = epoch_batches(pool.labeled, pool.size, training.batch_size, rng(setup.seed, "finetune_order", *moment))
    labeled_draws = augmentation.draw_weak(len(pool.labeled), rng(setup.seed, "finetune_weak", *moment))
    unlabeled = pool.unlabeled
    size = unlabeled_batch_size(len(unlabeled), len(pool.labeled), training.batch_size, training.unlabeled_batch_limit)
    if setup.ssl is None or size == 0:
        return Plan(labeled, labeled_draws, [], None, None)
    batches = epoch_batches(unlabeled, pool.size, size, rng(setup.seed, "unlabeled_order", *moment))[: len(labeled)]
    count = sum(len(batch) for batch in batches)
    weak = augmentation.draw_weak(count, rng(setup.seed, "unlabeled_weak", *moment))
    strong = augmentation.draw_strong(count, rng(setup.seed, "unlabeled_strong", *moment))
    return Plan(labeled, labeled_draws, batches, weak, strong)


def batch_length(batches: list[Tensor], step: int) -> int:
    """How many images the batch of a step has; 0 past the last one."""
    return len(batches[step]) if step < len(batches) else 0


def measured_batches(
    setup: Setup,
    frozen: nn.Module,
    module: LossPredictionModule,
    plan: Plan,
    labels: Tensor,
    hidden: Tensor,
    tally: Tensor,
    first: int,
) -> Iterator[tuple[Measured, Measured | None]]:
    """What the frozen backbone says of the batches of each step from `first` on."""
    labeled_images = setup.dataset.train.batches(plan.labeled[first:])
    unlabeled_images = setup.dataset.train.batches(plan.unlabeled[first:])
    at = sum(len(batch) for batch in plan.labeled[:first])
    unlabeled_at = sum(len(batch) for batch in plan.unlabeled[:first])
    for step, images in enumerate(labeled_images, start=first):
        batch = plan.labeled[step].to(setup.device)
        with torch.no_grad(), setup.autocast():
            views = setup.augmentation.weak(images, rows(plan.labeled_draws, slice(at, at + len(batch))))
            labeled = measure_labeled(frozen, module, views, labels[batch])
            unlabeled = None
            if size := batch_length(plan.unlabeled, step):
                span = slice(unlabeled_at, unlabeled_at + size)
                truth = hidden[plan.unlabeled[step].to(setup.device)]
                unlabeled = measure_unlabeled(setup, frozen, module, next(unlabeled_images), plan, span, truth, tally)
                unlabeled_at += size
        at += len(batch)
        yield labeled, unlabeled


def measure_labeled(frozen: nn.Module, module: LossPredictionModule, views: Tensor, labels: Tensor) -> Measured:
    """The true cross-entropy of a labeled batch and what the module reads of it."""
    logits, maps, _ = frozen(views)
    return Measured(module.summaries(maps), cross_entropy(logits.float(), labels, reduction="none"))


def measure_unlabeled(
    setup: Setup,
    frozen: nn.Module,
    module: LossPredictionModule,
    images: Tensor,
    plan: Plan,
    span: slice,
    truth: Tensor,
    tally: Tensor,
) -> Measured | None:
    """Pseudo-labels from the weak views; loss and summaries of the strong views that they make confident."""
    assert setup.ssl is not None
    assert plan.weak_draws is not None
    assert plan.strong_draws is not None
    weak_logits = frozen(setup.augmentation.weak(images, rows(plan.weak_draws, span))).logits
    target, weight = setup.ssl(weak_logits)
    right = (target.argmax(dim=1) == truth) & (weight > 0)  # for analysis alone: nothing learns from it
    tally[3:] += torch.stack([(weight > 0).sum(), right.sum(), weight.new_tensor(len(weight))])
    # The backbone is frozen, so a strong view that no loss will be ranked for need not be seen at all.
    used = confident(weight).cpu()
    if len(used) == 0:
        return None
    draws = rows(rows(plan.strong_draws, span), used)
    strong = frozen(setup.augmentation.strong(images[used.to(images.device)], draws))
    used = used.to(target.device)
    return Measured(module.summaries(strong.maps), pseudo_loss(strong.logits, target[used]))


def finetune_step(
    setup: Setup,
    module: LossPredictionModule,
    optimizer: torch.optim.Optimizer,
    labeled: Measured,
    unlabeled: Measured | None,
) -> Tensor:
    """One step of the module; returns [labeled, unlabeled] ranking losses and 1, for the sums of an epoch."""
    optimizer.zero_grad(set_to_none=True)
    with setup.autocast():
        supervised = setup.ranking(module.predict(labeled.summaries), labeled.loss)
        pseudo = torch.zeros_like(supervised)
        if unlabeled is not None:
            pseudo = setup.ranking(module.predict(unlabeled.summaries), unlabeled.loss)
    (supervised + pseudo).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.stack([supervised.detach(), pseudo.detach(), torch.ones_like(pseudo)])


def epoch_metrics(tally: Tensor, epoch: int) -> dict[str, float]:
    """Mean losses of an epoch and pseudo-label quality so far; FloatingPointError if a loss is not finite."""
    supervised, pseudo, steps = tally[:3].tolist()
    if not math.isfinite(supervised + pseudo):
        raise FloatingPointError(f"the fine-tune's loss is not finite in epoch {epoch}: lower training.finetune_rate")
    quality = {f"finetune/{key}": value for key, value in pseudo_label_quality(tally).items() if value is not None}
    losses = {"finetune/ranking_loss": supervised / steps, "finetune/pseudo_ranking_loss": pseudo / steps}
    return {"finetune/epoch": float(epoch)} | losses | quality


def pseudo_label_quality(tally: Tensor) -> dict[str, float | None]:
    """Share of unlabeled images that got a pseudo-label, and how many of these were right (None: none seen)."""
    kept, right, seen = tally[3:].tolist()
    return {
        "pseudo_label_rate": kept / seen if seen else None,
        "pseudo_label_accuracy": right / kept if kept else None,
    }
