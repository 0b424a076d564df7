"""What a command is to do: checked configs, which runs they are, and what becomes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sslpl import identity
from sslpl.build import with_fingerprints
from sslpl.command.validate import checked
from sslpl.processes import ALONE, World


class Plan(NamedTuple):
    """A checked config, and which run it is."""

    config: identity.Config
    choices: identity.Choices  # the option that it has in each group
    label: str
    folder: Path


class Outcome(NamedTuple):
    """What became of a plan: finished, resumed (and finished), skipped, reckoned, waiting (for labels), or elsewhere
    (another process's)."""

    state: str
    aubc: float | None = None
    note: str = ""  # what a person is to do


class Place(NamedTuple):
    """Where one of several processes runs a plan: the GPU that it was given, the name that its lines begin with, and
    the processes that share the run."""

    device: str | None = None
    name: str = ""
    world: World = ALONE


HERE = Place()


class RunFailed(Exception):
    """A run ended before its time; its one line says why."""


def planned(
    cfg: DictConfig,
    choices: identity.Choices,
    composed: Callable[[list[str]], tuple[identity.Config, identity.Choices]],
) -> Plan:
    """Checks a config and finds out which run it is; UserError for the first mistake."""
    container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config = with_fingerprints(checked({key: value for key, value in container.items() if key != "hydra"}))
    label = identity.label(config, choices, composed)
    return Plan(config, choices, label, identity.folder(config, choices["dataset"], label))
