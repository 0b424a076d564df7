"""Arguments that were not given: a strategy that uses one raises an error that names it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sslpl.types import UserError

RUN = "run"  # stands for what only a run has: images and networks


class MissingArgument(UserError):
    """Raised when a strategy uses an argument that was not given."""

    def __init__(self, argument: str) -> None:
        super().__init__(f"{argument} was not given")
        self.argument = argument


class MissingTensor(Tensor):
    """A tensor in place of an array that was not given: it can be passed on, but not used.

    `score_then_select` passes the embeddings on to every selector, and most selectors do not use them.
    """

    argument: str

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Raises MissingArgument for any operation, also for reading the length or the device."""
        missing = (leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, MissingTensor))
        raise MissingArgument(next(missing).argument)


def missing_tensor(argument: str) -> MissingTensor:
    """Returns a tensor that raises MissingArgument when it is used."""
    tensor = torch.empty(0).as_subclass(MissingTensor)
    tensor.argument = argument
    return tensor
