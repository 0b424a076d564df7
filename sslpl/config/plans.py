"""Plans: a checked config with the identity of its run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sslpl.config import identity
from sslpl.config.build import with_fingerprints
from sslpl.config.validation import validated_config


class Plan(NamedTuple):
    """A checked config with the method name and folder of its run."""

    config: identity.Config
    choices: identity.Choices  # the option chosen in each group
    method_name: str
    folder: Path


def make_plan(
    cfg: DictConfig,
    choices: identity.Choices,
    compose: Callable[[list[str]], tuple[identity.Config, identity.Choices]],
) -> Plan:
    """Checks a config and identifies its run; UserError for the first mistake."""
    config = with_fingerprints(validated_config(resolved_config(cfg)))
    method_name = identity.method_name(config, choices, compose)
    folder = identity.run_folder(config, identity.dataset_name(config, choices), method_name)
    return Plan(config, choices, method_name, folder)


def resolved_config(cfg: DictConfig) -> identity.Config:
    """Returns a composed config as plain containers with resolved values, without Hydra's own node."""
    container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return {key: value for key, value in container.items() if key != "hydra"}
