"""Finds out which arguments a query strategy needs, by running it on a few random rows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sslpl.seeds import rng
from sslpl.select.array_query import QueryPlace, query_arrays
from sslpl.select.arrays import CLASSES, SHAPES, SIZE_ARGUMENTS, PoolArrays, pool_arrays, shape_text
from sslpl.select.missing import RUN, MissingArgument
from sslpl.types import QueryStrategy, UserError

LOW = {"batches": 10, "steps": 2, "depth": 1}
SIZES = {"N": 12, "L": 6, "C": 3, "D": 4, "M": 2}  # of the random arrays
NEEDED = {name: shape_text(name) for name in SHAPES} | SIZE_ARGUMENTS
NEEDED["head"] = "(weight [C, D], bias [C])"  # the arguments that a strategy can need, and what is passed


class NeedsRun(UserError):
    """Raised for a strategy that needs the images or networks of a run."""

    def __init__(self, strategy: str) -> None:
        super().__init__(
            f"{strategy} needs the images or networks of a run: choose query={strategy} in a run, or here one of the "
            "strategies that work on arrays (python -m sslpl.select --list)"
        )


class MissingArguments(UserError):
    """Raised when a strategy needs arguments that were not given."""

    def __init__(self, strategy: str, arguments: Sequence[str]) -> None:
        passed = " and ".join(f"{argument}={NEEDED[argument]}" for argument in arguments)
        super().__init__(f"{strategy} needs {' and '.join(arguments)}: pass {passed}")
        self.strategy, self.arguments = strategy, tuple(arguments)


def needed_arguments(name: str, query: QueryStrategy) -> tuple[str, ...]:
    """Returns the arguments of `select` without which a strategy fails; NeedsRun if these are not enough.

    The strategy is run with more and more arrays until it no longer raises MissingArgument. A size, or the number of
    labels, that one of the other arguments has too is left out.
    """
    query, needed = shortened(query), list[str]()
    while (missing := first_missing(query, needed)) is not None:
        if missing == RUN:
            raise NeedsRun(name)
        needed.append(missing)
    for argument in tuple(needed):
        others = [other for other in needed if other != argument]
        if first_missing(query, others) is None:
            needed = others
    return tuple(sorted(needed, key=list(NEEDED).index))


def shortened(query: QueryStrategy) -> QueryStrategy:
    """Returns the strategy with low values of the options that decide how long it takes, and not what it needs."""
    keywords: dict[str, Any] = getattr(query, "keywords", {})
    low = {key: min(value, LOW[key]) for key, value in keywords.items() if key in LOW and isinstance(value, int)}
    return partial(query, **low) if low else query  # type: ignore[arg-type]  # mypy matches them to any parameter


def first_missing(query: QueryStrategy, arguments: Sequence[str]) -> str | None:
    """Returns the first argument that a strategy lacks when it is run with these arguments; None if it succeeds."""
    sizes = {name: SIZES[letter] for name, letter in SIZE_ARGUMENTS.items() if name in arguments}
    names = [part for name in arguments for part in (("head_weight", "head_bias") if name == "head" else (name,))]
    given = {name: random_array(name) for name in names if name in SHAPES}
    try:
        query_arrays(query, 3, pool_arrays(given, sizes), 0.5, QueryPlace(seed=0, cycle=1, cycles=3))
    except MissingArgument as error:
        return error.argument
    return None


def random_array(name: str) -> Tensor:
    """Returns random numbers, or classes in turn, in the shape of an argument."""
    shape = tuple(SIZES[letter] for letter in SHAPES[name])
    return torch.arange(shape[0]) % SIZES["C"] if name in CLASSES else torch.rand(shape, generator=rng(0, name))


def missing_error(
    name: str, query: QueryStrategy, argument: str, arrays: PoolArrays, all_arrays: PoolArrays
) -> UserError:
    """Returns the error for a strategy that lacks an argument: it names all that are missing, not the first alone.

    `arrays` is what the strategy was given of `all_arrays`, where those without rows count too.
    """
    missing = [need for need in needed_arguments(name, query) if not is_given(need, arrays)] or [argument]
    if argument == RUN:
        return NeedsRun(name)
    for need in missing:
        if is_given(need, all_arrays):
            return UserError(f"{need}: must have at least one row for {name}")
    return MissingArguments(name, missing)


def is_given(argument: str, arrays: PoolArrays) -> bool:
    """Returns True if an argument of `select` is among these arrays, or is a size that one of them has."""
    if argument in SIZE_ARGUMENTS:
        return SIZE_ARGUMENTS[argument] in arrays.sizes
    return ("head_weight" if argument == "head" else argument) in arrays.tensors
