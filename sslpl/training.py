"""The training options."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from sslpl.types import Count, CountOrZero, Positive, PositiveOrZero, Share, ShareBelowOne

TestViews = Literal["none", "mirror", "mirror_and_shift"]


@dataclass(frozen=True)
class Training:
    """The training hyperparameters; the defaults are those of SSLPM's published code."""

    epochs: Count = 200
    min_steps: CountOrZero = 0  # a joint training with fewer steps gets more epochs
    finetune_epochs: CountOrZero = 30
    finetune_last: bool = False  # fine-tune after the last cycle too (SCAL)
    batch_size: Count = 128
    rate: Positive = 0.1
    module_rate: Positive = 0.05
    finetune_rate: Positive = 0.01
    momentum: ShareBelowOne = 0.9
    nesterov: bool = False  # Nesterov's momentum in the joint training
    muon_rate: Positive | None = None  # trains the backbone's convolutions by Muon, with this rate; None: by SGD
    weight_decay: PositiveOrZero = 5e-4
    decay_per_image: PositiveOrZero | None = None  # instead of weight_decay in the joint training: see `decay_of`
    label_smoothing: ShareBelowOne = 0.0  # share of each target that is spread evenly over all classes
    ranking_weight: PositiveOrZero = 1.0
    rate_schedule: Literal["stepped", "triangular", "one_cycle"] = "stepped"  # stepped: by decay_at
    peak_at: Share = 0.2  # share of the steps after which a triangular or one-cycle rate is highest
    decay_at: Sequence[Share] = (0.8,)  # shares of the epochs after which the rates decay
    decay_factor: Positive = 0.1  # the rates are multiplied by this at each decay
    decay_early: CountOrZero = 0  # number of epochs by which the decay is advanced (1: Learning Loss)
    detach_after: Share = 0.6  # share of the epochs after which the module's gradient stops before the backbone
    unlabeled_batch_limit: Count = 1536  # maximum size of an unlabeled batch of the fine-tune
    warm_start: bool = True  # continue from the weights of the previous cycle
    trim: bool = True  # exclude the lowest-loss labeled images from the joint training
    checkpoint: Literal["last", "best"] = "last"  # weights kept after joint training; best: by validation accuracy
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    alternating_flips: bool = False  # mirrors each image in every other epoch, instead of at random
    test_time_augmentation: TestViews = "none"  # views of a test image whose logits are averaged
    precise_batch_norm: bool = False  # re-estimates batch norm's statistics over labeled images after joint training
    finetune_clip: Positive | None = None  # maximum norm of the module's gradient in the fine-tune
    augment: bool = False  # with a frozen backbone: augment its images, which are then embedded in every epoch

    def for_steps(self, steps_per_epoch: int) -> Self:
        """Returns the training of a cycle with that many steps per epoch: it has at least `min_steps` steps (ours)."""
        return replace(self, epochs=max(self.epochs, -(-self.min_steps // steps_per_epoch)))

    @property
    def most_epochs(self) -> int:
        """The largest number of epochs that a joint training can have: with a single step per epoch."""
        return max(self.epochs, self.min_steps)

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Returns the factor on the learning rates in a step (from 0) of the joint training, 0 to 1.

        A triangular rate rises and falls linearly, a one-cycle rate along half a cosine each (Smith and Topin 2018).
        """
        if self.rate_schedule == "stepped":
            return self.decay(step // steps_per_epoch)
        height = triangle((step + 1) / (self.epochs * steps_per_epoch + 1), self.peak_at)
        return height if self.rate_schedule == "triangular" else (1 - math.cos(math.pi * height)) / 2

    def decay_of(self, rate: float) -> float:
        """Returns the weight decay of weights with a highest rate, as SGD takes it: it is multiplied by the rate.

        With `decay_per_image` d, a step at the highest rate takes the share d x batch size off the weights, whatever
        the rate is (as in hlb-CIFAR10 and airbench).
        """
        return self.weight_decay if self.decay_per_image is None else self.decay_per_image * self.batch_size / rate

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
    max_iterations: Count = 1000  # of L-BFGS
    steps: Count = 100  # of AdamW

    def snapshot_steps(self, count: int) -> set[int]:
        """Returns the steps (from 0) to save a snapshot after: evenly spaced over the second half, with the last."""
        return spaced_over_second_half(self.steps, count)


def triangle(position: float, peak: float) -> float:
    """Returns the height of a triangle over 0 to 1 that is 1 at the peak and 0 at both ends."""
    if position <= peak:
        return position / peak if peak > 0 else 1.0
    return (1 - position) / (1 - peak)


def spaced_over_second_half(total: int, count: int) -> set[int]:
    """Returns `count` of the numbers 0 to total - 1, evenly spaced over the second half, with the last."""
    return {total - 1 - k * total // (2 * count) for k in range(count)}
