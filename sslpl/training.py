"""The training options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sslpl.types import Count, CountOrZero, Positive, PositiveOrZero, Share, ShareBelowOne


@dataclass(frozen=True)
class Training:
    """How the networks learn; the defaults are SSLPM's published code."""

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
    decay_at: Sequence[Share] = (0.8,)  # from epoch >= share x epochs on ...
    decay_factor: Positive = 0.1  # ... the rates are multiplied by this
    decay_early: CountOrZero = 0  # epochs by which the decay comes earlier (1: Learning Loss)
    detach_after: Share = 0.6  # from epoch > share x epochs on, the module does not reach the backbone
    unlabeled_batch_limit: Count = 1536  # an unlabeled batch of the fine-tune is at most this
    warm_start: bool = True  # networks keep their weights into the next cycle
    trim: bool = True  # leave the easiest images out of the joint training
    checkpoint: Literal["last", "best"] = (
        "last"  # the epoch of joint training whose networks go on; best: in validation
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def decay(self, epoch: int) -> float:
        """By what the rates are multiplied in an epoch (from 0)."""
        passed = sum(epoch >= share * self.epochs - self.decay_early for share in self.decay_at)
        return self.decay_factor**passed

    def snapshot_epochs(self, count: int) -> set[int]:
        """The epochs (from 0) after which a snapshot is kept: evenly spaced over the second half, the last included."""
        return {self.epochs - 1 - k * self.epochs // (2 * count) for k in range(count)}

    def detached(self, epoch: int) -> bool:
        """Whether the module's gradient stops before the backbone in an epoch (from 0)."""
        return epoch > self.detach_after * self.epochs
