"""The finetune phase: with the backbone frozen, the module learns from labeled and pseudo-labeled images."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sslpl.learn.cuda_graphs import CapturedSteps, fall_back
from sslpl.learn.divergence import check_finetune_losses, check_losses
from sslpl.learn.finetune_epoch import draw_finetune_epoch
from sslpl.learn.frozen_losses import FrozenLosses, labeled_losses, pseudo_labeler, unlabeled_losses
from sslpl.learn.optimizers import resume_optimizer
from sslpl.learn.sums import EPOCH_SUMS, FinetuneSums, finetune_means, initial_sums, pseudo_label_quality
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import Step

FinetuneStep = Callable[[FrozenLosses, FrozenLosses | None], Tensor]  # labeled, unlabeled -> sums


def finetune(setup: Setup, state: State) -> Iterator[Step]:
    """Fine-tunes the module on the labeled set and on pseudo-labeled images (SSLPM, section III)."""
    training, module = setup.training, state.module
    assert isinstance(module, LossPredictionModule)
    optimizer = finetune_optimizer(setup, state)
    frozen = FrozenBackbone(state.backbone, setup.bfloat16)
    labeler, labels = pseudo_labeler(setup, state, frozen), state.labels().to(setup.device)
    state.sums = sums = initial_sums(setup.device, state.sums, len(FinetuneSums._fields))
    step = finetune_stepper(setup, state, module, optimizer)
    padded = setup.capture_steps and not state.uncapturable  # a captured step has inputs of one size
    inputs = draw_finetune_epoch(setup, state, state.epoch)
    for epoch in range(state.epoch, training.finetune_epochs):
        labeled = labeled_losses(setup, frozen, module, inputs, labels, state.step)
        unlabeled = unlabeled_losses(setup, state, frozen, module, inputs, labeler, padded)
        for supervised, pseudo in zip(labeled, unlabeled, strict=True):
            sums[:EPOCH_SUMS] += step(supervised, pseudo.losses if pseudo else None)
            if pseudo:  # batches are pseudo-labeled in groups, ahead of the steps: save the state after this step
                sums[EPOCH_SUMS:] += pseudo.counts
                state.ssl = pseudo.ssl
            state.step += 1
            if epoch == 0 and state.step.bit_count() == 1:  # after 1, 2, 4, ... steps: most explode in the first few
                check_losses(state)
            if state.step < len(inputs.labeled):
                yield Step(inputs.images(state.step - 1))
        images = inputs.images(len(inputs.labeled) - 1)
        if epoch + 1 < training.finetune_epochs:  # while a GPU is still busy with this epoch
            inputs = draw_finetune_epoch(setup, state, epoch + 1)
        state.epoch, state.step = epoch + 1, 0
        largest = setup.turns.wait_for(largest_prediction(module, supervised))
        metrics = finetune_metrics(sums, epoch, largest)
        sums[:EPOCH_SUMS] = 0  # losses are averaged over the epoch, pseudo-labels over the phase
        yield Step(images, metrics)
    state.teacher = None
    state.row.update(pseudo_label_quality(FinetuneSums(*sums.tolist())))


def finetune_optimizer(setup: Setup, state: State) -> torch.optim.SGD:
    """Returns SGD over the module only, with its state from the checkpoint if there is one."""
    training, module = setup.training, state.module
    assert module is not None
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=training.finetune_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,
    )
    return resume_optimizer(optimizer, state)


def finetune_stepper(
    setup: Setup, state: State, module: LossPredictionModule, optimizer: torch.optim.Optimizer
) -> FinetuneStep:
    """Returns `finetune_step`, captured as a CUDA graph if this is enabled and possible."""
    if not setup.capture_steps or state.uncapturable:
        return partial(finetune_step, setup, module, optimizer)

    def step(tensors: Sequence[Tensor], _kind: bool) -> Tensor:
        count = len(module.levels) + 1
        (*labeled, loss), unlabeled = tensors[:count], None
        if len(tensors) > count:
            *summaries, unlabeled_loss, weight = tensors[count:]
            unlabeled = FrozenLosses(tuple(summaries), unlabeled_loss, weight)
        return finetune_step(setup, module, optimizer, FrozenLosses(tuple(labeled), loss), unlabeled)

    def flat(part: FrozenLosses) -> list[Tensor]:
        return [*part.summaries, part.loss, *(() if part.weight is None else (part.weight,))]

    captured = CapturedSteps(step, partial(fall_back, setup, state))
    return lambda labeled, unlabeled: captured(flat(labeled) + (flat(unlabeled) if unlabeled else []))


def finetune_step(
    setup: Setup,
    module: LossPredictionModule,
    optimizer: torch.optim.Optimizer,
    labeled: FrozenLosses,
    unlabeled: FrozenLosses | None,
) -> Tensor:
    """Takes one step and returns its addition to the first three entries of `FinetuneSums`, [3]."""
    optimizer.zero_grad(set_to_none=True)
    parts = [labeled] if unlabeled is None else [labeled, unlabeled]
    summaries = [torch.cat(level) for level in zip(*(part.summaries for part in parts), strict=True)]
    predicted = torch.split(module.predict(summaries), [len(part.loss) for part in parts])
    supervised = setup.ranking(predicted[0], labeled.loss)
    pseudo = torch.zeros_like(supervised)
    if unlabeled is not None:
        pseudo = setup.ranking(predicted[1], unlabeled.loss, weight=unlabeled.weight)
    (supervised + pseudo).backward()  # type: ignore[no-untyped-call]
    if setup.training.finetune_clip is not None:
        nn.utils.clip_grad_norm_(module.parameters(), setup.training.finetune_clip)
    optimizer.step()
    return torch.stack([supervised.detach(), pseudo.detach(), torch.ones_like(pseudo)])


@torch.no_grad()
def largest_prediction(module: LossPredictionModule, batch: FrozenLosses) -> Tensor:
    """Returns the largest absolute predicted loss [1] of a batch; NaN if one is NaN."""
    return module.predict(batch.summaries).abs().amax(dim=0, keepdim=True)


def finetune_metrics(sums: Tensor, epoch: int, largest: Tensor) -> dict[str, float]:
    """Returns mean losses of an epoch and pseudo-label quality so far; FloatingPointError if the fine-tune diverges."""
    *values, largest_value = torch.cat([sums, largest]).tolist()
    totals = FinetuneSums(*values)
    check_finetune_losses(totals, epoch, largest_value)
    quality = {f"finetune/{name}": value for name, value in pseudo_label_quality(totals).items() if value is not None}
    return {"finetune/epoch": float(epoch)} | finetune_means(totals) | quality
