"""How many images are labeled when."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sslpl.class_balance import geometric_frequencies
from sslpl.types import Amount, Count, Ratio, ShareBelowOne, UserError


@dataclass(frozen=True)
class Budget:
    """How many images are labeled when: an int counts images, a float in (0, 1] is a share of the pool."""

    initial: Amount
    per_cycle: Amount
    cycles: Count
    candidates: Amount = 0.5
    validation: ShareBelowOne = 0.0  # of each batch of labels, never learned from
    initial_pool: Literal["random", "balanced", "imbalanced", "query"] = "random"  # query: the strategy's choice
    initial_ratio: Ratio | None = None  # of an imbalanced one, the first class's share over the last one's

    def in_images(self, pool_size: int, classes: int = 1, known: int = 0) -> "Budget":
        """The budget in images for a pool of `pool_size`; UserError if it does not fit pool, classes or itself.

        `known` images that are labeled already, if there are any, are the initial pool.
        """
        if known:
            return replace(self, initial=known).in_images(pool_size, classes)
        counts = replace(
            self,
            initial=_image_count(self.initial, pool_size),
            per_cycle=_image_count(self.per_cycle, pool_size),
            candidates=min(_image_count(self.candidates, pool_size), pool_size),
        )
        total = int(counts.labeled_after(self.cycles - 1))
        if total > pool_size:
            raise UserError(
                f"budget: initial={self.initial} and {self.cycles - 1} x per_cycle={self.per_cycle} ask for "
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
        """UserError if a batch is held out whole, or none of the initial one, for a budget in images."""
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
        """How many labels of a batch are held out for validation."""
        return int(self.validation * batch + 0.5)

    def held_out_after(self, cycle: int) -> int:
        """How many labels are held out when cycle `cycle` (from 0) trains, for a budget in images."""
        return self.held_out(int(self.initial)) + cycle * self.held_out(int(self.per_cycle))

    def initial_frequency(self, classes: int) -> Tensor | None:
        """How often each class [classes] is to be met in the initial pool; None: as it comes."""
        if self.initial_pool in ("random", "query"):
            return None
        return geometric_frequencies(classes, self.initial_ratio or 1.0)

    def labeled_after(self, cycle: int) -> float:
        """How many images are labeled when cycle `cycle` (from 0) trains, for a budget in images."""
        return self.initial + cycle * self.per_cycle


def _image_count(amount: Amount, pool_size: int) -> int:
    return amount if isinstance(amount, int) else max(1, int(amount * pool_size + 0.5))
