"""Which images are labeled, and how many may be: index arithmetic, frozen."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sslpl.seeds import shuffled
from sslpl.types import Amount, Count, UserError


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

    def of(self, pool_size: int) -> "Budget":
        """The budget in images for a pool of `pool_size`; UserError if the pool is too small for it."""
        counts = Budget(
            initial=_images(self.initial, pool_size),
            per_cycle=_images(self.per_cycle, pool_size),
            cycles=self.cycles,
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
        return counts

    def labeled_after(self, cycle: int) -> float:
        """How many images are labeled when cycle `cycle` (from 0) trains, for a budget in images."""
        return self.initial + cycle * self.per_cycle


def _images(amount: Amount, pool_size: int) -> int:
    return amount if isinstance(amount, int) else max(1, int(amount * pool_size + 0.5))


def initial_pool(pool_size: int, initial: int, generator: Generator) -> LabelPool:
    """A pool with `initial` images labeled at random, without replacement."""
    chosen = shuffled(torch.arange(pool_size), pool_size, generator)[:initial]
    return LabelPool(pool_size, chosen)


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
