"""Checks which `_target_`s of a run's config.yaml may be called, because it may come from somebody else."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from sslpl.files import CONF
from sslpl.types import UserError

NETWORKS = ("backbone", "module")  # groups whose options are networks


def check_targets(config: dict[str, Any], trusted: Sequence[str] = ()) -> None:
    """Checks that the networks of a config only call the targets in conf/ and those defined in trusted packages.

    The config must be unresolved: a run writes it without interpolations. UserError for the first mistake.
    """
    for group in NETWORKS:
        for key, value in leaves(group, config.get(group)):
            if "${" in f"{key}{value}":
                raise UserError(f"{key}={value}: must be a value; a run's config.yaml has no interpolations")
            if key.endswith("._target_"):
                check_target(key, value, trusted)


def check_target(key: str, target: Any, trusted: Sequence[str]) -> None:
    """Checks one target: its name, and the module that defines it, as a package also exposes what it imports."""
    if isinstance(target, str) and target in known_networks():
        return
    if not is_in_packages(str(target), trusted):
        package = str(target).partition(".")[0]
        raise UserError(
            f"{key}={target}: is none of sslpl's networks and is not called; "
            f"--trust {package} if you trust that package and whoever wrote the run's config.yaml"
        )
    try:
        module = str(getattr(get_object(target), "__module__", ""))
    except Exception as error:  # importing it may raise anything
        raise UserError(f"{key}={target}: cannot be imported ({error})") from error
    if not is_in_packages(module, trusted):
        raise UserError(f"{key}={target}: is defined in {module or 'no package'}, outside of --trust")


def is_in_packages(name: str, packages: Sequence[str]) -> bool:
    """Returns True if a dotted name is that of one of the packages, or of something inside it."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def known_networks() -> frozenset[str]:
    """Returns the network targets that the options in conf/ name."""
    files: list[Any] = [OmegaConf.load(path) for group in NETWORKS for path in (CONF / group).glob("*.yaml")]
    return frozenset(str(file["_target_"]) for file in files if "_target_" in file)


def leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yields every leaf below a node with its dotted path, in lists too; the value of a `_target_` is always a leaf."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield f"{path}._target_", child
            else:
                yield from leaves(f"{path}.{key}", child)
    else:
        yield path, node
