"""Which images are labeled, and how many may be: index arithmetic, frozen."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.seeds import shuffled
from sslpl.types import Amount, Count, Ratio, ShareBelowOne, UserError


@dataclass(frozen=True)
class LabelPool:
    """A pool of `size` images, of which those in `order` are labeled, in the order of their labeling."""

    size: int
    order: Tensor  # [L] int64, on the CPU

    @property
    def labeled(self) -> Tensor:
        """Positions of the labeled images, in the order of their labeling."""
        return self.order

    @property
    def unlabeled(self) -> Tensor:
        """Positions of the unlabeled images, ascending."""
        mask = torch.ones(self.size, dtype=torch.bool)
        mask[self.order] = False
        return mask.nonzero().flatten()

    def label(self, picked: Tensor) -> "LabelPool":
        """The pool after labeling `picked`; ValueError for a repeat, a labeled image or one outside the pool."""
        if len(picked) and (int(picked.min()) < 0 or int(picked.max()) >= self.size):
            raise ValueError(f"picked positions outside the pool of {self.size} images")
        order = torch.cat([self.order, picked.to("cpu", torch.int64)])
        if len(torch.unique(order)) != len(order):
            raise ValueError("picked an image twice, or one that is labeled already")
        return replace(self, order=order)


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

    def of(self, pool_size: int, classes: int = 1, known: int = 0) -> "Budget":
        """The budget in images for a pool of `pool_size`; UserError if it does not fit pool, classes or itself.

        `known` images that are labeled already, if there are any, are the initial pool.
        """
        if known:
            return replace(self, initial=known).of(pool_size, classes)
        counts = replace(
            self,
            initial=_images(self.initial, pool_size),
            per_cycle=_images(self.per_cycle, pool_size),
            candidates=min(_images(self.candidates, pool_size), pool_size),
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
        return falling(classes, self.initial_ratio or 1.0)

    def labeled_after(self, cycle: int) -> float:
        """How many images are labeled when cycle `cycle` (from 0) trains, for a budget in images."""
        return self.initial + cycle * self.per_cycle


def _images(amount: Amount, pool_size: int) -> int:
    return amount if isinstance(amount, int) else max(1, int(amount * pool_size + 0.5))


def initial_pool(
    pool_size: int, initial: int, generator: Generator, classes: tuple[Tensor, Tensor] | None = None
) -> LabelPool:
    """A pool with `initial` images labeled at random, without replacement.

    With `classes`, hidden labels [pool] and frequencies [classes], each class has its share: an oracle's act.
    """
    order = shuffled(torch.arange(pool_size), pool_size, generator)
    if classes is not None:
        labels, frequency = classes
        order = order[torch.argsort(turns(labels[order], frequency), stable=True)]
    return LabelPool(pool_size, order[:initial])


def turns(labels: Tensor, frequency: Tensor) -> Tensor:
    """When each image's turn is [N], if classes [N] are to be met in proportion to their frequencies [classes].

    The k-th image of a class (from 0) is due at (k + 1/2) / frequency, the apportionment of Webster and Sainte-Lague:
    the counts of the first n turns are as proportional as whole numbers can be (ours); a used-up class is skipped.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=len(frequency))
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return (rank + 0.5) / frequency[labels]


def falling(classes: int, ratio: float) -> Tensor:
    """Frequencies [classes] that fall geometrically from 1 to 1 / ratio, as Cui et al. (2019) make long tails."""
    return ratio ** (-torch.arange(classes, dtype=torch.float64) / max(classes - 1, 1))


def removal_size(initial_size: int) -> int:
    """How many images the trimming leaves out: one in a hundred of the initial pool, even (SSLPM's code)."""
    return initial_size // 100 // 2 * 2


def trimmed(index: Tensor, loss: Tensor, picked: Tensor, picked_loss: Tensor, initial_size: int) -> Tensor:
    """Positions that the next joint training leaves out: the easiest of the labeled and of the new (SSLPM's code)."""
    half = removal_size(initial_size) // 2
    easiest = index[torch.argsort(loss, stable=True)[:half]]
    easiest_new = picked[torch.argsort(picked_loss, stable=True)[:half]]
    return torch.cat([easiest, easiest_new])


def without(index: Tensor, excluded: Tensor) -> Tensor:
    """`index` in its order, less the positions in `excluded`."""
    return index[~torch.isin(index, excluded)]
