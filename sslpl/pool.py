"""The pool of images, split into labeled and unlabeled ones."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sslpl.class_balance import apportionment_order
from sslpl.seeds import shuffled


@dataclass(frozen=True)
class LabelPool:
    """An immutable pool of `size` images; `order` holds the labeled ones, in the order of labeling."""

    size: int
    order: Tensor  # [L] int64, on the CPU

    @property
    def labeled(self) -> Tensor:
        """Positions of the labeled images, in the order of labeling."""
        return self.order

    @property
    def unlabeled(self) -> Tensor:
        """Positions of the unlabeled images, ascending."""
        mask = torch.ones(self.size, dtype=torch.bool)
        mask[self.order] = False
        return mask.nonzero().flatten()

    def label(self, index: Tensor) -> "LabelPool":
        """Returns the pool after labeling `index`; ValueError if one is repeated, labeled or outside the pool."""
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= self.size):
            raise ValueError(f"selected positions outside the pool of {self.size} images")
        order = torch.cat([self.order, index.to("cpu", torch.int64)])
        if len(torch.unique(order)) != len(order):
            raise ValueError("selected an image twice, or one that is already labeled")
        return replace(self, order=order)


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
