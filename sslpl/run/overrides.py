"""What overrides of a command line mean beyond Hydra's grammar: a query by its parts, sweeps, groups left out."""

import sys
from collections.abc import Callable
from typing import TypeVar

from hydra.errors import ConfigCompositionException

from sslpl.config.validation import GROUPS, without_option
from sslpl.types import UserError

T = TypeVar("T")
QUERY_PARTS = ("query/scorer", "query/selector")
COMBINED_QUERY = "query=selective_clustering"  # a query made of a scorer and a selector


def with_combined_query(run: Callable[[], T]) -> T:
    """Runs a command; where the method's query has no parts and the user names both, again with a query that has.

    Hydra composes each config before any of them is run, so nothing was done the first time.
    """
    check_options()
    try:
        return run()
    except ConfigCompositionException as error:
        place = place_of_parts(str(error))
        if place is None:
            raise
        sys.argv.insert(place, COMBINED_QUERY)
    return run()


def place_of_parts(message: str) -> int | None:
    """Where on the command line a query can be added to the scorer and the selector that Hydra could not place.

    None if the error is another one, or if a query is named, or if the query depends on a swept method.
    """
    keys = [argument.partition("=")[0] for argument in sys.argv]
    swept = any(argument.startswith(("method=", "experiment=")) and "," in argument for argument in sys.argv)
    failed = any(f"Could not override '{part}'" in message for part in QUERY_PARTS)
    if not failed or swept or "query" in keys or not all(part in keys for part in QUERY_PARTS):
        return None
    return keys.index(QUERY_PARTS[0])


def check_options() -> None:
    """Raises a UserError for a group that is set to null."""
    for argument in sys.argv[1:]:
        key, _, option = argument.lstrip("+").partition("=")
        if option == "null" and key in (*GROUPS, *QUERY_PARTS):
            raise UserError(f"{argument}: must be one of the options of {key}")


def explain_unplaced_key(key: str, shown: str) -> str | None:
    """Says why a key has no place in the config: its group was removed, or it is part of another query; else None."""
    group = key.partition(".")[0]
    if group in GROUPS and any(argument.partition("=")[0] == f"~{group}" for argument in sys.argv[1:]):
        return without_option(group)
    if key in QUERY_PARTS:
        example = "query/scorer=entropy query/selector=top"
        return (
            f"{shown}: the query chosen takes no scorer and selector; name both and no query, as in {example}, "
            f"or a query that does, as in {COMBINED_QUERY}"
        )
    return None


def sweep_without_m(argument: str) -> str:
    """Says that several values of a key are a sweep, and how they are written as a list."""
    key, _, values = argument.partition("=")
    as_list = f"; one list is written {key}=[{values}]" if "." in key and "(" not in values else ""
    return f"{argument}: several values are a sweep, which needs -m (--multirun){as_list}"
