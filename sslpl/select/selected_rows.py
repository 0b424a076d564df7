"""Selects rows of arrays by a query strategy."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sslpl.arguments import checked_value
from sslpl.query.limits import function_name, unwrap_partial
from sslpl.select.array_query import QueryPlace, query_arrays
from sslpl.select.arrays import LABELED, PoolArrays, head_arrays, pool_arrays
from sslpl.select.missing import MissingArgument
from sslpl.select.named_strategies import build_strategy, option_names
from sslpl.select.needed_arguments import NeedsRun, missing_error, needed_arguments
from sslpl.types import Amount, Count, CountOrZero, QueryStrategy, UserError

Array: TypeAlias = ArrayLike | Tensor


class SelectedRows(NamedTuple):
    """The rows that a query strategy selected, in its order."""

    positions: NDArray[np.int64]  # [n], rows of the arrays of unlabeled examples
    scores: NDArray[np.float64]  # [n], query scores; NaN if the strategy has none


def select(
    strategy: str | QueryStrategy,
    n: int,
    *,
    logits: Array | None = None,
    probabilities: Array | None = None,
    embeddings: Array | None = None,
    predicted_loss: Array | None = None,
    labeled_logits: Array | None = None,
    labeled_embeddings: Array | None = None,
    labeled_predicted_loss: Array | None = None,
    labels: Array | None = None,
    previous_logits: Array | None = None,
    committee_logits: Array | None = None,
    head: nn.Linear | tuple[Array, Array] | None = None,
    hidden_labels: Array | None = None,
    num_unlabeled: int | None = None,
    num_classes: int | None = None,
    candidates: Amount = 0.5,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    cycle: int = 1,
    cycles: int | None = None,
) -> SelectedRows:
    """Selects n of N unlabeled rows by a query strategy, exactly as a run would on the same predictions.

    `strategy` is the name of an option of `query`, or a function of your own. Arrays are those of numpy or torch:
    `logits` [N, C] (log-probabilities will do) or `probabilities` [N, C], `embeddings` [N, D] and `predicted_loss` [N]
    of the unlabeled rows; `labeled_logits` [L, C], `labeled_embeddings` [L, D], `labeled_predicted_loss` [L] and
    `labels` [L] of the labeled rows; `previous_logits` [N, C] of the previous cycle's network; `committee_logits`
    [M, N, C]; `head`, the linear layer from embeddings to logits; `hidden_labels` [N] for `class_balanced_random`.
    `num_unlabeled` and `num_classes` are needed where no array has that size.

    `candidates` is the number of rows that a clustering selector clusters, or their share of N + L. `options` are the
    keys below `query` of a run, such as `{"subset": 1000, "selector": "power", "selector.beta": 2.0}`. `seed` and
    `cycle` determine all random draws; temporal output discrepancy reverses its order in cycle 0, as published, and TCM
    changes its criterion in cycle 3. `cycles` is the number of cycles of the whole loop, of which the last has no
    query; by default this query is the last. Class-stratified selection depends on it.

    Raises UserError for an unknown name, for an array that is needed and not given, and for arrays that do not fit.
    """
    query: QueryStrategy = (
        build_strategy(strategy, options or {}) if isinstance(strategy, str) else partial(strategy, **(options or {}))
    )
    name = strategy if isinstance(strategy, str) else function_name(strategy)
    if probabilities is not None and logits is not None:
        raise UserError("probabilities: must not be given together with logits")
    given: dict[str, Any] = {
        "logits": logits,
        "probabilities": probabilities,
        "embeddings": embeddings,
        "predicted_loss": predicted_loss,
        "labeled_logits": labeled_logits,
        "labeled_embeddings": labeled_embeddings,
        "labeled_predicted_loss": labeled_predicted_loss,
        "labels": labels,
        "previous_logits": previous_logits,
        "committee_logits": committee_logits,
        "hidden_labels": hidden_labels,
    } | ({} if head is None else dict(head_arrays(head)))
    sizes = {"num_unlabeled": num_unlabeled, "num_classes": num_classes}
    for key, size in sizes.items():
        sizes[key] = None if size is None else checked_int(key, size, Count)
    all_arrays = pool_arrays(given, sizes)
    arrays = all_arrays if works_without_labels(query) else without_empty_labeled(all_arrays)
    cycle = checked_int("cycle", cycle, CountOrZero)
    cycles = cycle + 2 if cycles is None else checked_int("cycles", cycles, Count)
    place = QueryPlace(checked_int("seed", seed, CountOrZero), cycle, cycles)
    try:
        selection = query_arrays(query, checked_int("n", n, Count), arrays, candidates, place)
    except MissingArgument as error:
        raise missing_error(name, query, error.argument, arrays, all_arrays) from None
    return SelectedRows(selection.index.numpy(), selection.score.numpy())


@cache
def strategies() -> Mapping[str, tuple[str, ...]]:
    """Returns the names of the strategies that `select` offers, with the arguments that each needs by default.

    Strategies that need the images or networks of a run are left out.
    """
    found = {}
    for name in option_names("query"):
        with suppress(NeedsRun):
            found[name] = needed_arguments(name, build_strategy(name, {}))
    return found


def works_without_labels(query: QueryStrategy) -> bool:
    """Returns True for a strategy that can select the first rows to label."""
    return getattr(unwrap_partial(query)[0], "works_unlabeled", False)


def without_empty_labeled(arrays: PoolArrays) -> PoolArrays:
    """Returns the arrays without those of labeled rows if there are no labeled rows."""
    if arrays.sizes.get("L") != 0:
        return arrays
    tensors = {name: tensor for name, tensor in arrays.tensors.items() if name not in LABELED}
    return arrays._replace(tensors=tensors, sizes={key: size for key, size in arrays.sizes.items() if key != "L"})


def checked_int(name: str, value: Any, annotation: Any) -> int:
    """Returns a whole number of Python or numpy as an int; UserError if it is out of range or no whole number."""
    return int(checked_value(name, int(value) if isinstance(value, np.integer) else value, annotation))
