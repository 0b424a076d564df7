"""Handles overrides beyond Hydra's grammar: a query from a scorer and a selector, missing -m, removed groups."""

import sys
from collections.abc import Callable
from typing import TypeVar

from hydra.errors import ConfigCompositionException

from sslpl.config.validation import GROUPS, removed_group
from sslpl.types import UserError

T = TypeVar("T")
QUERY_GROUPS = ("query/scorer", "query/selector")
COMBINED_QUERY = "query=selective_clustering"  # a query made of a scorer and a selector


def with_combined_query(run: Callable[[], T]) -> T:
    """Runs a command; if the user names a scorer and a selector but the query takes none, with a query that does.

    Hydra composes all configs before it runs any, so the failed first attempt has had no effect.
    """
    check_options()
    try:
        return run()
    except ConfigCompositionException as error:
        position = combined_query_position(str(error))
        if position is None:
            raise
        sys.argv.insert(position, COMBINED_QUERY)
    return run()


def combined_query_position(message: str) -> int | None:
    """Returns the index in sys.argv at which the combined query makes a scorer and a selector valid.

    None for any other error, if a query is named, or if the query depends on a swept method.
    """
    keys = [argument.partition("=")[0] for argument in sys.argv]
    swept = any(argument.startswith(("method=", "experiment=")) and "," in argument for argument in sys.argv)
    failed = any(f"Could not override '{group}'" in message for group in QUERY_GROUPS)
    if not failed or swept or "query" in keys or not all(group in keys for group in QUERY_GROUPS):
        return None
    return keys.index(QUERY_GROUPS[0])


def check_options() -> None:
    """Raises a UserError for a group that is set to null."""
    for argument in sys.argv[1:]:
        key, _, option = argument.lstrip("+").partition("=")
        if option == "null" and key in (*GROUPS, *QUERY_GROUPS):
            raise UserError(f"{argument}: must be one of the options of {key}")


def explain_unplaced_key(key: str, shown: str) -> str | None:
    """Explains why a key is not in the config: its group was removed, or the query takes no such part; else None."""
    group = key.partition(".")[0]
    if group in GROUPS and any(argument.partition("=")[0] == f"~{group}" for argument in sys.argv[1:]):
        return removed_group(group)
    if key in QUERY_GROUPS:
        example = "query/scorer=entropy query/selector=top"
        return (
            f"{shown}: the query chosen takes no scorer and selector; name both and no query, as in {example}, "
            f"or a query that does, as in {COMBINED_QUERY}"
        )
    return None


def sweep_without_m(argument: str) -> str:
    """Explains that several values of a key are a sweep, and how to write them as a list."""
    key, _, values = argument.partition("=")
    as_list = f"; one list is written {key}=[{values}]" if "." in key and "(" not in values else ""
    return f"{argument}: several values are a sweep, which needs -m (--multirun){as_list}"
