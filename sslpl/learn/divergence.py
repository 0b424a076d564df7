"""Divergence checks, made at the end of an epoch, before a checkpoint and after the first steps of a fine-tune."""

import math

from sslpl.learn.sums import FinetuneSums, JointSums
from sslpl.state import State

# Upper limit of an epoch's mean ranking loss and of the predicted losses after it. Random order costs 0.69 (bce) or 1
# (margin), and both losses depend on differences of a few units, so a stable fine-tune stays far below. A diverging one
# exceeds the limit within a step or two, because each step multiplies its predictions by hundreds or more.
LIMIT = 1e6


def check_losses(state: State) -> None:
    """Raises FloatingPointError if the losses of the current epoch have diverged, so that the state is not saved."""
    if state.sums is None:
        return
    if state.phase == "train":
        check_joint_losses(JointSums(*state.sums.tolist()), state.epoch)
    elif state.phase == "finetune":
        check_finetune_losses(FinetuneSums(*state.sums.tolist()), state.epoch)


def check_joint_losses(sums: JointSums[float], epoch: int) -> None:
    """Raises FloatingPointError if a loss of the joint training is not finite."""
    if not math.isfinite(sums.loss + sums.ranking_loss + sums.unlabeled_loss):
        keys = "lower training.rate or training.module_rate"
        raise FloatingPointError(f"the training loss is not finite in epoch {epoch + 1}: {keys}")


def check_finetune_losses(sums: FinetuneSums[float], epoch: int, largest: float | None = None) -> None:
    """Raises FloatingPointError if the fine-tune diverges; `largest` is the largest predicted loss after an epoch."""
    ranking = (sums.ranking_loss + sums.pseudo_ranking_loss) / max(sums.steps, 1)
    if ranking <= LIMIT and (largest is None or largest <= LIMIT):  # False for NaN
        return
    figures = f"ranking loss {ranking:.2g}" + (f", predicted losses up to {largest:.2g}" if largest is not None else "")
    raise FloatingPointError(
        f"the fine-tune diverged in epoch {epoch + 1} ({figures}): "
        "if the joint training was short, batch norm's running averages lag behind it: set "
        "training.precise_batch_norm=true or raise training.epochs; otherwise lower training.finetune_rate or set "
        "training.finetune_clip"
    )
