"""The pool of images, split into labeled and unlabeled ones."""

from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from sslpl.class_balance import apportionment_order
from sslpl.seeds import shuffled


@dataclass(frozen=True)
class LabelPool:
    """An immutable pool of `size` images: labeled ones, unlabeled ones, and rejected ones, which nobody asks about."""

    size: int
    order: Tensor  # [L] int64, the labeled images in the order of labeling, on the CPU
    rejected: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # [R], of no class, on the CPU

    @property
    def labeled(self) -> Tensor:
        """Positions of the labeled images, in the order of labeling."""
        return self.order

    @property
    def unlabeled(self) -> Tensor:
        """Positions of the unlabeled images, ascending."""
        mask = torch.ones(self.size, dtype=torch.bool)
        mask[self.order] = mask[self.rejected] = False
        return mask.nonzero().flatten()

    def label(self, index: Tensor) -> "LabelPool":
        """Returns the pool after labeling `index`; ValueError if one is repeated, labeled or outside the pool."""
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= self.size):
            raise ValueError(f"selected positions outside the pool of {self.size} images")
        order = torch.cat([self.order, index.to("cpu", torch.int64)])
        if len(torch.unique(order)) != len(order) or bool(torch.isin(index.cpu(), self.rejected).any()):
            raise ValueError("selected an image twice, or one that is already labeled or rejected")
        return replace(self, order=order)

    def reject(self, index: Tensor) -> "LabelPool":
        """Returns the pool in which the images at `index`, labeled or not, are rejected."""
        return replace(
            self, order=without(self.order, index), rejected=torch.cat([without(self.rejected, index), index])
        )

    def restore(self, index: Tensor) -> "LabelPool":
        """Returns the pool in which the images at `index` are not rejected."""
        return replace(self, rejected=without(self.rejected, index))


def random_pool(
    pool_size: int, initial: int, generator: Generator, classes: tuple[Tensor, Tensor] | None = None
) -> LabelPool:
    """Returns a pool with `initial` images labeled at random, without replacement.

    With `classes`, hidden labels [pool] and frequencies [classes], the sample is stratified by class.
    """
    order = shuffled(torch.arange(pool_size), pool_size, generator)
    if classes is not None:
        labels, frequency = classes
        order = order[torch.argsort(apportionment_order(labels[order], frequency), stable=True)]
    return LabelPool(pool_size, order[:initial])


def without(index: Tensor, excluded: Tensor) -> Tensor:
    """Returns `index`, in order, without the positions in `excluded`."""
    return index[~torch.isin(index, excluded)]
