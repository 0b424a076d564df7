"""The training options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sslpl.types import Count, CountOrZero, Positive, PositiveOrZero, Share, ShareBelowOne


@dataclass(frozen=True)
class Training:
    """The training hyperparameters; the defaults are those of SSLPM's published code."""

    epochs: Count = 200
    finetune_epochs: CountOrZero = 30
    finetune_last: bool = False  # fine-tune after the last cycle too (SCAL)
    batch_size: Count = 128
    rate: Positive = 0.1
    module_rate: Positive = 0.05
    finetune_rate: Positive = 0.01
    momentum: ShareBelowOne = 0.9
    weight_decay: PositiveOrZero = 5e-4
    ranking_weight: PositiveOrZero = 1.0
    decay_at: Sequence[Share] = (0.8,)  # shares of the epochs after which the rates decay
    decay_factor: Positive = 0.1  # the rates are multiplied by this at each decay
    decay_early: CountOrZero = 0  # number of epochs by which the decay is advanced (1: Learning Loss)
    detach_after: Share = 0.6  # share of the epochs after which the module's gradient stops before the backbone
    unlabeled_batch_limit: Count = 1536  # maximum size of an unlabeled batch of the fine-tune
    warm_start: bool = True  # continue from the weights of the previous cycle
    trim: bool = True  # exclude the lowest-loss labeled images from the joint training
    checkpoint: Literal["last", "best"] = "last"  # weights kept after joint training; best: by validation accuracy
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: bool = False  # with a frozen backbone: augment its images, which are then embedded in every epoch

    def decay(self, epoch: int) -> float:
        """Returns the factor on the learning rates in an epoch (from 0)."""
        decays = sum(epoch >= share * self.epochs - self.decay_early for share in self.decay_at)
        return self.decay_factor**decays

    def snapshot_epochs(self, count: int) -> set[int]:
        """Returns the epochs (from 0) to save a snapshot after: evenly spaced over the second half, with the last."""
        return spaced_over_second_half(self.epochs, count)

    def detached(self, epoch: int) -> bool:
        """True if the module's gradient stops before the backbone in an epoch (from 0)."""
        return epoch > self.detach_after * self.epochs


@dataclass(frozen=True)
class HeadTraining(Training):
    """The training of a small head on embeddings, over all labeled examples at once (ours).

    L-BFGS minimizes to convergence and has no rate; AdamW takes `steps` steps, trains with dropout, and trains the loss
    prediction module in both cases.
    """

    optimizer: Literal["lbfgs", "adamw"] = "lbfgs"
    steps: Count = 100  # of AdamW; iterations of L-BFGS at most

    def snapshot_steps(self, count: int) -> set[int]:
        """Returns the steps (from 0) to save a snapshot after: evenly spaced over the second half, with the last."""
        return spaced_over_second_half(self.steps, count)


def spaced_over_second_half(total: int, count: int) -> set[int]:
    """Returns `count` of the numbers 0 to total - 1, evenly spaced over the second half, with the last."""
    return {total - 1 - k * total // (2 * count) for k in range(count)}
