"""The context of a query strategy over arrays, without networks and images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from sslpl.select.arrays import PoolArrays
from sslpl.select.missing import RUN, MissingArgument, missing_tensor
from sslpl.types import Predictions


@dataclass(frozen=True, kw_only=True)
class ArrayContext:
    """Implements `QueryContext`: positions are 0..N-1 of the unlabeled rows, and N..N+L-1 of the labeled rows.

    What was not given raises MissingArgument when a strategy uses it.
    """

    arrays: PoolArrays  # with the size N
    unlabeled: Tensor
    candidates: int
    cycle: int
    cycles: int

    @property
    def device(self) -> torch.device:
        """The device of the arrays."""
        return self.arrays.device

    @property
    def labeled(self) -> Tensor:
        """Positions of the labeled rows [L]."""
        if "L" not in self.arrays.sizes:
            return missing_tensor("labels")
        return torch.arange(self.arrays.sizes["N"], self.arrays.sizes["N"] + self.arrays.sizes["L"])

    @property
    def labels(self) -> Tensor:
        """Labels of the labeled rows [L]."""
        return self.tensor("labels")

    @property
    def num_classes(self) -> int:
        """The number of classes, from an array that has one column per class or as given."""
        if "C" not in self.arrays.sizes:
            raise MissingArgument("num_classes")
        return self.arrays.sizes["C"]

    @property
    def backbone(self) -> nn.Module:
        """A network that consists of the linear head alone."""
        if "head_weight" not in self.arrays.tensors:
            raise MissingArgument("head")
        return HeadOnly(self.arrays.tensors["head_weight"], self.arrays.tensors["head_bias"]).eval()

    @property
    def module(self) -> nn.Module | None:
        """None: there is no loss prediction module, only its outputs."""
        return None

    @property
    def predictions(self) -> Predictions:
        """Predictions for the unlabeled rows."""
        columns = (self.rows(name) for name in ("logits", "embeddings", "predicted_loss"))
        return Predictions(self.unlabeled, *columns)

    @property
    def labeled_predictions(self) -> Predictions:
        """Predictions for the labeled rows."""
        columns = (self.tensor(f"labeled_{name}") for name in ("logits", "embeddings", "predicted_loss"))
        return Predictions(self.labeled, *columns)

    @property
    def previous(self) -> Predictions:
        """Logits of the previous cycle's network for the unlabeled rows."""
        return self.logits_alone(self.rows("previous_logits"))

    @property
    def committee(self) -> tuple[Predictions, ...]:
        """Logits of each member of the committee for the unlabeled rows."""
        if "committee_logits" not in self.arrays.tensors:
            raise MissingArgument("committee_logits")
        members = self.arrays.tensors["committee_logits"]
        return tuple(self.logits_alone(self.at_unlabeled(logits)) for logits in members)

    def logits_alone(self, logits: Tensor) -> Predictions:
        """Returns predictions of another network for the unlabeled rows, of which only the logits are given."""
        return Predictions(self.unlabeled, logits, missing_tensor(RUN), missing_tensor(RUN))

    def normalized_images(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:  # noqa: ARG002
        """Raises MissingArgument."""
        raise MissingArgument(RUN)

    def augmented_images(self, batches: Sequence[Tensor], views: int, rng: Generator) -> Iterator[Iterator[Tensor]]:  # noqa: ARG002
        """Raises MissingArgument."""
        raise MissingArgument(RUN)

    def restricted_to(self, index: Tensor) -> "ArrayContext":
        """Returns a copy of the context with only these unlabeled rows, ascending."""
        return replace(self, unlabeled=index)

    def hidden_labels(self) -> Tensor:
        """Returns the labels [N] of the unlabeled rows, given for a baseline that knows them."""
        return self.rows("hidden_labels")

    def tensor(self, argument: str) -> Tensor:
        """Returns the array of an argument, or a tensor that raises MissingArgument when it is used."""
        found = self.arrays.tensors.get(argument)
        return missing_tensor(argument) if found is None else found

    def rows(self, argument: str) -> Tensor:
        """Returns the rows of an argument that belong to the unlabeled rows of this context."""
        found = self.arrays.tensors.get(argument)
        return missing_tensor(argument) if found is None else self.at_unlabeled(found)

    def at_unlabeled(self, table: Tensor) -> Tensor:
        """Returns the rows of a table [N, ...] at the unlabeled rows of this context; no copy if these are all."""
        return table if len(self.unlabeled) == self.arrays.sizes["N"] else table[self.unlabeled.to(table.device)]


class HeadOnly(nn.Module):
    """A backbone of which only the linear head is known."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        classes, dimensions = weight.shape
        self.head = nn.Linear(dimensions, classes, device="meta")  # no random initial weights
        self.head.weight, self.head.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))

    def forward(self, images: Tensor) -> Tensor:  # noqa: ARG002
        """Raises MissingArgument."""
        raise MissingArgument(RUN)
