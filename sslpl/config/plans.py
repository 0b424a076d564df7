"""What a command is to do: checked configs, which runs they are, and what becomes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sslpl.config import identity
from sslpl.config.build import with_fingerprints
from sslpl.config.validation import validated_config


class Plan(NamedTuple):
    """A checked config, and which run it is."""

    config: identity.Config
    choices: identity.Choices  # the option that it has in each group
    method_name: str
    folder: Path


def make_plan(
    cfg: DictConfig,
    choices: identity.Choices,
    composed: Callable[[list[str]], tuple[identity.Config, identity.Choices]],
) -> Plan:
    """Checks a config and finds out which run it is; UserError for the first mistake."""
    container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config = with_fingerprints(validated_config({key: value for key, value in container.items() if key != "hydra"}))
    method_name = identity.method_name(config, choices, composed)
    return Plan(config, choices, method_name, identity.run_folder(config, choices["dataset"], method_name))
