"""Query strategies by name, with the defaults of `conf/query/`, without composing a config."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import yaml

from sslpl.arguments import checked_value, nearest_name, type_hints
from sslpl.files import CONF
from sslpl.types import UserError

Node = dict[str, Any]


class SafeConfigLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads YAML as configs are read: 1e-3 is a number, where PyYAML takes it for a word."""


SafeConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"]
)


def build_strategy(name: str, options: Mapping[str, Any]) -> partial[Any]:
    """Returns a strategy with its defaults and these options, which are the keys below `query` of a run.

    `subset` sets an argument of the strategy, `scorer` and `selector` choose its parts by name, and `scorer.samples`
    sets an argument of a part. Raises UserError for unknown names and keys and for values out of range.
    """
    parts = default_parts(read_yaml("query", name))
    node = read_option("query", name, {part: str(options[part]) for part in parts if part in options})
    values = dict(dotted_arguments("", node))
    known = [*parts, *values]
    for key, value in options.items():
        if key not in known:
            advice = nearest_name(key, known) if known else f"{name} has no options"
            raise UserError(f"query.{key}={value}: no such key; {advice}")
    built: partial[Any] = build_node("query", node, {**values, **options})
    return built


def read_option(group: str, name: str, parts: Mapping[str, str] | None = None) -> Node:
    """Reads an option of a config group with all its parts, of which `parts` names those that are not the defaults.

    The entries of its `defaults` are `part: option`, an option of the group below, or `option@path`, an option of the
    same group, or `part@path: option`, an option of the group below at a path that no option of the user's replaces.
    """
    content = read_yaml(group, name)
    node = {key: value for key, value in content.items() if key not in ("defaults", "_partial_")}
    for part, option in {**default_parts(content), **(parts or {})}.items():
        node[part] = read_option(f"{group}/{part}", option)
    for path, (subgroup, option) in placed_options(group, content).items():
        *parents, last = path.split(".")
        place = node
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = read_option(subgroup, option)
    return node


def placed_options(group: str, content: Node) -> dict[str, tuple[str, str]]:
    """Returns the group and the option of each path that the `defaults` of an option name."""
    placed = {}
    for entry in content.get("defaults", []):
        ((name, option),) = entry.items() if isinstance(entry, dict) else [(entry, None)]
        name, at, path = name.partition("@")
        if at:
            placed[path] = (group, name) if option is None else (f"{group}/{name}", option)
    return placed


def read_yaml(group: str, name: str) -> Node:
    """Reads the file of an option; UserError if there is none."""
    if name not in option_names(group):
        raise UserError(f"{group}={name}: no such option; {nearest_name(name, option_names(group))}")
    content: Node = parse_yaml((CONF / group / f"{name}.yaml").read_text())
    return content


def parse_yaml(text: str) -> Any:
    """Parses YAML; yaml.YAMLError if it is none."""
    return yaml.load(text, SafeConfigLoader)


def option_names(group: str) -> list[str]:
    """Returns the names of the options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def default_parts(content: Node) -> dict[str, str]:
    """Returns the default option of each part of an option that has no path of its own."""
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    return {part: option for entry in entries for part, option in entry.items() if "@" not in part}


def dotted_arguments(prefix: str, node: Node) -> Iterator[tuple[str, Any]]:
    """Yields the arguments of a node and of its parts, with their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from dotted_arguments(f"{prefix}{key}.", value)
        elif key != "_target_":
            yield f"{prefix}{key}", value


def build_node(path: str, node: Node, values: Mapping[str, Any]) -> Any:
    """Returns the function of a node with its arguments, by their keys below `query`, checked against its signature.

    A node without a function is a mapping of nodes.
    """
    function = get_function(node["_target_"]) if "_target_" in node else None
    hints = {} if function is None else type_hints(function)
    arguments = {}
    for key, value in node.items():
        inner = f"{path}.{key}"
        if isinstance(value, dict):
            arguments[key] = build_node(inner, value, values)
        elif key != "_target_":
            arguments[key] = checked_value(inner, values[inner.removeprefix("query.")], hints[key])
    return arguments if function is None else partial(function, **arguments)


def get_function(path: str) -> Callable[..., Any]:
    """Imports a function by its dotted path."""
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
