"""Query strategies by name, with the defaults of `conf/query/`, without composing a config."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any

import yaml

from sslpl.arguments import checked_value, nearest_name, type_hints
from sslpl.files import CONF
from sslpl.types import UserError

Node = dict[str, Any]
STRUCTURE = ("_target_", "_partial_", "defaults")  # keys of a node that are no arguments


def build_strategy(name: str, options: Mapping[str, Any]) -> partial[Any]:
    """Returns a strategy with its defaults and these options, which are the keys below `query` of a run.

    `subset` sets an argument of the strategy, `scorer` and `selector` choose its parts by name, and `scorer.samples`
    sets an argument of a part. Raises UserError for unknown names and keys and for values out of range.
    """
    node = read_option("query", name)
    parts = {part: options.get(part, default) for part, default in node["defaults"].items()}
    nodes = {"": node} | {f"{part}.": read_option(f"query/{part}", str(option)) for part, option in parts.items()}
    known = [*parts, *(prefix + key for prefix, part in nodes.items() for key in part if key not in STRUCTURE)]
    for key, value in options.items():
        if key not in known:
            advice = nearest_name(key, known) if known else f"{name} has no options"
            raise UserError(f"query.{key}={value}: no such key; {advice}")
    bound = {prefix: bind_arguments(prefix, part, options) for prefix, part in nodes.items()}
    strategy = bound.pop("")
    return partial(strategy, **{prefix[:-1]: part for prefix, part in bound.items()})


def bind_arguments(prefix: str, node: Node, options: Mapping[str, Any]) -> partial[Any]:
    """Returns the function of a node with its arguments, checked against its signature."""
    module, _, function = node["_target_"].rpartition(".")
    target: Callable[..., Any] = getattr(import_module(module), function)
    hints = type_hints(target)
    values = {key: options.get(prefix + key, default) for key, default in node.items() if key not in STRUCTURE}
    checked = {key: checked_value(f"query.{prefix}{key}", value, hints[key]) for key, value in values.items()}
    return partial(target, **checked)


def read_option(group: str, name: str) -> Node:
    """Reads an option of a config group: its target, its arguments, and the default options of its parts."""
    if name not in option_names(group):
        raise UserError(f"{group}={name}: no such option; {nearest_name(name, option_names(group))}")
    node: Node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    parts = [entry for entry in node.get("defaults", []) if entry != "_self_"]
    node["defaults"] = {part: option for entry in parts for part, option in entry.items()}
    return node


@cache
def option_names(group: str) -> list[str]:
    """Returns the names of the options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
