"""The labeling budget: how many images are labeled in each cycle."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sslpl.class_balance import geometric_frequencies
from sslpl.types import Amount, Count, Positive, PositiveOrZero, Ratio, Share, ShareBelowOne, UserError


@dataclass(frozen=True)
class Budget:
    """The labeling budget: an int is a number of images, a float in (0, 1] is a share of the pool."""

    initial: Amount
    per_cycle: Amount
    cycles: Count
    candidates: Amount = 0.5
    validation: ShareBelowOne = 0.0  # share of each batch of labels that is held out
    initial_pool: Literal["random", "balanced", "imbalanced", "query"] = "random"  # query: selected by the strategy
    initial_ratio: Ratio | None = None  # imbalanced: share of the first class over that of the last
    seconds: Positive | None = None  # of labeling; the run ends before a batch that would exceed them
    seconds_per_label: PositiveOrZero | None = None  # where the time is not measured
    target: Share | None = None  # test accuracy that forecasts look for
    stop: Literal["never", "stable_predictions", "expected_gain"] = "never"
    stop_kappa: Share = 0.99
    stop_gain: Share = 0.001

    def in_images(self, pool_size: int, classes: int = 1, known: int = 0) -> "Budget":
        """Returns the budget in images; UserError if it is inconsistent or does not fit the pool or the classes.

        If `known` images are already labeled, they are the initial pool.
        """
        if known:
            return replace(self, initial=known).in_images(pool_size, classes)
        counts = replace(
            self,
            initial=image_count(self.initial, pool_size),
            per_cycle=image_count(self.per_cycle, pool_size),
            candidates=min(image_count(self.candidates, pool_size), pool_size),
        )
        total = int(counts.labeled_after(self.cycles - 1))
        if total > pool_size:
            raise UserError(
                f"budget: initial={self.initial} and {self.cycles - 1} x per_cycle={self.per_cycle} need "
                f"{total:,} labels; the pool has {pool_size:,} images: lower budget.initial, "
                "budget.per_cycle or budget.cycles"
            )
        if self.cycles > 1 and counts.candidates < counts.per_cycle:
            raise UserError(f"budget.candidates={self.candidates}: must be at least per_cycle={self.per_cycle}")
        if self.initial_pool == "balanced" and counts.initial < classes:
            raise UserError(
                f"budget.initial={self.initial}: must be at least {classes} images, one of each class, "
                "with budget.initial_pool=balanced"
            )
        counts.check_validation()
        return counts

    def check_validation(self) -> None:
        """Raises UserError if a batch has no label left to train on, or none to validate on; for a budget in images."""
        batches = {"initial": int(self.initial)} | ({"per_cycle": int(self.per_cycle)} if self.cycles > 1 else {})
        for name, batch in batches.items():
            if self.held_out(batch) == batch:
                raise UserError(
                    f"budget.validation={self.validation}: must leave at least one of {name}={batch} to learn from"
                )
        if self.validation > 0 and self.held_out(int(self.initial)) == 0:
            raise UserError(
                f"budget.validation={self.validation}: must hold out at least one of initial={self.initial} labels"
            )

    def held_out(self, batch: int) -> int:
        """Returns the number of labels in a batch that are held out for validation."""
        return int(self.validation * batch + 0.5)

    def held_out_after(self, cycle: int) -> int:
        """Returns the number of held-out labels in a cycle (from 0), for a budget in images."""
        return self.held_out(int(self.initial)) + cycle * self.held_out(int(self.per_cycle))

    def initial_frequency(self, classes: int) -> Tensor | None:
        """Returns the relative class frequencies [classes] wanted in the initial pool; None if unconstrained."""
        if self.initial_pool in ("random", "query"):
            return None
        return geometric_frequencies(classes, self.initial_ratio or 1.0)

    def labeled_after(self, cycle: int) -> float:
        """Returns the number of labeled images in a cycle (from 0), for a budget in images."""
        return self.initial + cycle * self.per_cycle


def image_count(amount: Amount, pool_size: int) -> int:
    """Returns an amount in images: an int as it is, a float as a share of the pool, rounded, at least 1."""
    return amount if isinstance(amount, int) else max(1, int(amount * pool_size + 0.5))
