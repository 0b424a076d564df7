"""Semi-supervised fine-tune: with the backbone frozen, the module learns from labeled and unlabeled images."""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.data.augment import StrongDraws, WeakDraws, rows
from sslpl.data.batches import epoch_batches, fetched, grouped, unlabeled_batch_size
from sslpl.data.images import to_device
from sslpl.learn.joint import resumed
from sslpl.learn.ssl import confident
from sslpl.models.backbones import Frozen
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.seeds import rng
from sslpl.setup import Setup, Step
from sslpl.state import State
from sslpl.types import PseudoLabel


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

    def images(self, step: int) -> int:
        """How many images a step sees."""
        return len(self.labeled[step]) + (len(self.unlabeled[step]) if step < len(self.unlabeled) else 0)


def finetune(setup: Setup, state: State) -> Iterator[Step]:
    """Trains the module on the whole labeled set and, beside it, on pseudo-labeled images (SSLPM, section III)."""
    training, module = setup.training, state.module
    assert isinstance(module, LossPredictionModule)
    optimizer = finetune_optimizer(setup, state)
    frozen = Frozen(state.backbone, setup.bfloat16)
    labels, hidden = state.labels().to(setup.device), setup.dataset.train_labels.to(setup.device)
    tally = torch.zeros(6, device=setup.device) if state.tally is None else state.tally.to(setup.device)
    state.tally = tally
    for epoch in range(state.epoch, training.finetune_epochs):
        plan = epoch_plan(setup, state, epoch)
        labeled = measured_labeled(setup, frozen, module, plan, labels, state.step)
        unlabeled = measured_unlabeled(setup, frozen, module, plan, hidden, tally, state.step)
        for supervised, pseudo in zip(labeled, unlabeled, strict=True):
            tally[:3] += finetune_step(setup, module, optimizer, supervised, pseudo)
            state.step += 1
            if state.step < len(plan.labeled):
                yield Step(plan.images(state.step - 1))
        state.epoch, state.step = epoch + 1, 0
        metrics = epoch_metrics(tally, epoch)
        tally[:3] = 0  # the losses are means over an epoch, the pseudo-labels over the phase
        yield Step(plan.images(len(plan.labeled) - 1), metrics)
    state.row.update(pseudo_label_quality(tally))


def finetune_optimizer(setup: Setup, state: State) -> torch.optim.SGD:
    """SGD over the module alone; continues what a checkpoint interrupted."""
    training, module = setup.training, state.module
    assert module is not None
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=training.finetune_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,
    )
    return resumed(optimizer, state)


def epoch_plan(setup: Setup, state: State, epoch: int) -> Plan:
    """Draws one epoch: which images are seen when, and how they are augmented."""
    training, pool, augmentation = setup.training, state.pool, setup.augmentation
    size, unlabeled = training.batch_size, pool.unlabeled

    def stream(purpose: str) -> torch.Generator:
        return rng(setup.seed, purpose, state.cycle, epoch)

    labeled = epoch_batches(pool.labeled, pool.size, size, stream("finetune_order"))
    labeled_draws = augmentation.draw_weak(len(pool.labeled), stream("finetune_weak"))
    many = unlabeled_batch_size(len(unlabeled), len(pool.labeled), size, training.unlabeled_batch_limit)
    if setup.ssl is None or many == 0:
        return Plan(labeled, labeled_draws, [], None, None)
    batches = epoch_batches(unlabeled, pool.size, many, stream("unlabeled_order"))[: len(labeled)]
    count = sum(len(batch) for batch in batches)
    weak = augmentation.draw_weak(count, stream("unlabeled_weak"))
    return Plan(labeled, labeled_draws, batches, weak, augmentation.draw_strong(count, stream("unlabeled_strong")))


def measured_labeled(
    setup: Setup, frozen: Frozen, module: LossPredictionModule, plan: Plan, labels: Tensor, first: int
) -> Iterator[Measured]:
    """True cross-entropy and summaries of the weak views of each labeled batch from `first` on."""
    images, augmentation = setup.dataset.train, setup.augmentation
    groups = grouped(plan.labeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.labeled[:first])
    for group, fetch in zip(groups, fetched(images, groups), strict=True):
        views = augmentation.weak(fetch, rows(plan.labeled_draws, slice(start, start + len(fetch))))
        truth = labels[to_device(torch.cat(group), setup.device)]
        yield from parts(measure(frozen, module, views, truth), [len(batch) for batch in group])
        start += len(fetch)


def measured_unlabeled(
    setup: Setup, frozen: Frozen, module: LossPredictionModule, plan: Plan, hidden: Tensor, tally: Tensor, first: int
) -> Iterator[Measured | None]:
    """Pseudo-loss and summaries of the confident strong views of each step from `first` on; None without one."""
    images, augmentation = setup.dataset.train, setup.augmentation
    groups = grouped(plan.unlabeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.unlabeled[:first])
    for group, fetch in zip(groups, fetched(images, groups), strict=True):
        assert plan.weak_draws is not None
        assert plan.strong_draws is not None
        sizes, span = [len(batch) for batch in group], slice(start, start + len(fetch))
        weak = augmentation.weak(fetch, rows(plan.weak_draws, span))
        target, weight = pseudo_labels(setup, frozen, weak, sizes)
        tally[3:] += label_counts(target, weight, hidden[to_device(torch.cat(group), setup.device)])
        # The one wait of a group: which images are confident decides what is augmented and forwarded next.
        used = used_rows(weight.cpu(), sizes)
        chosen = torch.cat(used)
        there = to_device(chosen, setup.device)
        strong = augmentation.strong(fetch[there], rows(rows(plan.strong_draws, span), chosen))
        whole = measure(frozen, module, strong, target[there])
        yield from (part if len(part.loss) else None for part in parts(whole, [len(part) for part in used]))
        start += len(fetch)
    yield from [None] * (len(plan.labeled) - max(first, len(plan.unlabeled)))


@torch.no_grad()
def pseudo_labels(setup: Setup, frozen: Frozen, weak: Tensor, sizes: list[int]) -> PseudoLabel:
    """What the frozen backbone says of the weak views of a group of batches."""
    assert setup.ssl is not None
    logits = torch.cat([features.logits for features in frozen.parts(weak)])
    labels = [setup.ssl(part) for part in torch.split(logits, sizes)]
    return PseudoLabel(*(torch.cat(column) for column in zip(*labels, strict=True)))


@torch.no_grad()
def measure(frozen: Frozen, module: LossPredictionModule, views: Tensor, target: Tensor) -> Measured:
    """Summaries of views and their cross-entropy against classes [B] or class probabilities [B, classes]."""
    seen = [(features.logits, *module.summaries(features.maps)) for features in frozen.parts(views)]
    logits, *summaries = map(torch.cat, zip(*seen, strict=True))
    return Measured(tuple(summaries), cross_entropy(logits, target, reduction="none"))


def parts(whole: Measured, sizes: list[int]) -> list[Measured]:
    """What was measured of a group, batch by batch."""
    summaries = zip(*(torch.split(summary, sizes) for summary in whole.summaries), strict=True)
    return [Measured(*part) for part in zip(summaries, torch.split(whole.loss, sizes), strict=True)]


def used_rows(weight: Tensor, sizes: list[int]) -> list[Tensor]:
    """For each batch of a group, the rows of the group whose pseudo-loss is ranked.

    The backbone is frozen, so a strong view whose loss is not ranked need not be seen at all (ours).
    """
    starts = [0, *accumulate(sizes[:-1])]
    return [confident(part) + start for part, start in zip(torch.split(weight, sizes), starts, strict=True)]


def label_counts(target: Tensor, weight: Tensor, truth: Tensor) -> Tensor:
    """How many pseudo-labels are kept, right, seen; the truth is for analysis alone: nothing learns from it."""
    kept = weight > 0
    right = kept & (target.argmax(dim=1) == truth)
    return torch.stack([kept.sum(), right.sum(), torch.full_like(kept.sum(), len(kept))])


def finetune_step(
    setup: Setup,
    module: LossPredictionModule,
    optimizer: torch.optim.Optimizer,
    labeled: Measured,
    unlabeled: Measured | None,
) -> Tensor:
    """One step of the module; returns [labeled, unlabeled] ranking losses and 1, for the sums of an epoch."""
    optimizer.zero_grad(set_to_none=True)
    both = [labeled] if unlabeled is None else [labeled, unlabeled]
    summaries = [torch.cat(level) for level in zip(*(part.summaries for part in both), strict=True)]
    predicted = torch.split(module.predict(summaries), [len(part.loss) for part in both])
    supervised = setup.ranking(predicted[0], labeled.loss)
    pseudo = torch.zeros_like(supervised) if unlabeled is None else setup.ranking(predicted[1], unlabeled.loss)
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
