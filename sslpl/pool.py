"""Which images are labeled, and how many may be: index arithmetic, frozen."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sslpl.class_balance import apportionment_order
from sslpl.seeds import shuffled


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

    def label(self, index: Tensor) -> "LabelPool":
        """The pool after labeling `index`; ValueError for a repeat, a labeled image or one outside the pool."""
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= self.size):
            raise ValueError(f"picked positions outside the pool of {self.size} images")
        order = torch.cat([self.order, index.to("cpu", torch.int64)])
        if len(torch.unique(order)) != len(order):
            raise ValueError("picked an image twice, or one that is labeled already")
        return replace(self, order=order)


def random_pool(
    pool_size: int, initial: int, generator: Generator, classes: tuple[Tensor, Tensor] | None = None
) -> LabelPool:
    """A pool with `initial` images labeled at random, without replacement.

    With `classes`, hidden labels [pool] and frequencies [classes], each class has its share: an oracle's act.
    """
    order = shuffled(torch.arange(pool_size), pool_size, generator)
    if classes is not None:
        labels, frequency = classes
        order = order[torch.argsort(apportionment_order(labels[order], frequency), stable=True)]
    return LabelPool(pool_size, order[:initial])


def without(index: Tensor, excluded: Tensor) -> Tensor:
    """`index` in its order, less the positions in `excluded`."""
    return index[~torch.isin(index, excluded)]
