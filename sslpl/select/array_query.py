"""Runs a query strategy on arrays as a run does on the predictions of its networks."""

from typing import NamedTuple

import torch

from sslpl.arguments import checked_value
from sslpl.budget import image_count
from sslpl.query.limits import check_query
from sslpl.seeds import rng, seeded_draws
from sslpl.select.array_context import ArrayContext
from sslpl.select.arrays import PoolArrays
from sslpl.select.missing import MissingArgument
from sslpl.types import Amount, QueryStrategy, Selection, UserError


class QueryPlace(NamedTuple):
    """The place of a query in a run: seed and cycle determine its random place."""

    seed: int
    cycle: int
    cycles: int  # of the run, of which the last has no query


def query_arrays(query: QueryStrategy, n: int, arrays: PoolArrays, candidates: Amount, place: QueryPlace) -> Selection:
    """Returns the selection of a strategy, with positions 0..N-1.

    Raises MissingArgument if the strategy uses an array that is not given, and UserError if it cannot select n rows.
    """
    if "N" not in arrays.sizes:
        raise MissingArgument("num_unlabeled")
    count = arrays.sizes["N"]
    if n > count:
        raise UserError(f"n={n}: must be at most {count}, the number of unlabeled rows")
    most = image_count(checked_value("candidates", candidates, Amount), count + arrays.sizes.get("L", 0))
    check_query(query, n, count, most, arrays.device)
    context = ArrayContext(
        arrays=arrays, unlabeled=torch.arange(count), candidates=most, cycle=place.cycle, cycles=place.cycles
    )
    with seeded_draws(arrays.device, place.seed, "query masks", place.cycle):
        return query(context, n, rng(place.seed, "query", place.cycle))
