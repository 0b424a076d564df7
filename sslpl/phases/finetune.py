"""Semi-supervised fine-tune: with the backbone frozen, the module learns from labeled and unlabeled images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslpl.learn.divergence import check_finetune_losses
from sslpl.learn.finetune_epoch import draw_finetune_epoch
from sslpl.learn.frozen_losses import FrozenLosses, labeled_losses, pseudo_labeler, unlabeled_losses
from sslpl.learn.optimizers import resume_optimizer
from sslpl.learn.sums import EPOCH_SUMS, FinetuneSums, finetune_means, pseudo_label_quality
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import Step


def finetune(setup: Setup, state: State) -> Iterator[Step]:
    """Trains the module on the labeled set and, beside it, on pseudo-labeled images (SSLPM, section III)."""
    training, module = setup.training, state.module
    assert isinstance(module, LossPredictionModule)
    optimizer = finetune_optimizer(setup, state)
    frozen = FrozenBackbone(state.backbone, setup.bfloat16)
    by, labels = pseudo_labeler(setup, state, frozen), state.labels().to(setup.device)
    sums = torch.zeros(len(FinetuneSums._fields)) if state.sums is None else state.sums
    state.sums = sums = sums.to(setup.device)
    for epoch in range(state.epoch, training.finetune_epochs):
        plan = draw_finetune_epoch(setup, state, epoch)
        labeled = labeled_losses(setup, frozen, module, plan, labels, state.step)
        unlabeled = unlabeled_losses(setup, state, frozen, module, plan, by)
        for supervised, pseudo in zip(labeled, unlabeled, strict=True):
            sums[:EPOCH_SUMS] += finetune_step(setup, module, optimizer, supervised, pseudo.losses if pseudo else None)
            if pseudo:  # a group of batches is pseudo-labeled ahead: what is saved is that of the steps done
                sums[EPOCH_SUMS:] += pseudo.counts
                state.ssl = pseudo.ssl
            state.step += 1
            if state.step < len(plan.labeled):
                yield Step(plan.images(state.step - 1))
        state.epoch, state.step = epoch + 1, 0
        metrics = finetune_metrics(sums, epoch, largest_prediction(module, supervised))
        sums[:EPOCH_SUMS] = 0  # the losses are means over an epoch, the pseudo-labels over the phase
        yield Step(plan.images(len(plan.labeled) - 1), metrics)
    state.teacher = None
    state.row.update(pseudo_label_quality(FinetuneSums(*sums.tolist())))


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
    return resume_optimizer(optimizer, state)


def finetune_step(
    setup: Setup,
    module: LossPredictionModule,
    optimizer: torch.optim.Optimizer,
    labeled: FrozenLosses,
    unlabeled: FrozenLosses | None,
) -> Tensor:
    """One step of the module; returns what it adds to the first three of `FinetuneSums`."""
    optimizer.zero_grad(set_to_none=True)
    both = [labeled] if unlabeled is None else [labeled, unlabeled]
    summaries = [torch.cat(level) for level in zip(*(part.summaries for part in both), strict=True)]
    predicted = torch.split(module.predict(summaries), [len(part.loss) for part in both])
    supervised = setup.ranking(predicted[0], labeled.loss)
    pseudo = torch.zeros_like(supervised)
    if unlabeled is not None:
        pseudo = setup.ranking(predicted[1], unlabeled.loss, weight=unlabeled.weight)
    (supervised + pseudo).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.stack([supervised.detach(), pseudo.detach(), torch.ones_like(pseudo)])


@torch.no_grad()
def largest_prediction(module: LossPredictionModule, batch: FrozenLosses) -> Tensor:
    """The largest predicted loss [1] of a batch, by magnitude; NaN if there is one."""
    return module.predict(batch.summaries).abs().amax(dim=0, keepdim=True)


def finetune_metrics(sums: Tensor, epoch: int, largest: Tensor) -> dict[str, float]:
    """Mean losses of an epoch and pseudo-label quality so far; FloatingPointError if the fine-tune diverges."""
    *values, top = torch.cat([sums, largest]).tolist()
    read = FinetuneSums(*values)
    check_finetune_losses(read, epoch, top)
    quality = {f"finetune/{name}": value for name, value in pseudo_label_quality(read).items() if value is not None}
    return {"finetune/epoch": float(epoch)} | finetune_means(read) | quality
