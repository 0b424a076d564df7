"""Composes the configs of a sweep."""

import re
from copy import deepcopy
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict, read_write

SEED = re.compile("seed=(0|[1-9][0-9]*)")  # as Hydra reads whole numbers


class SharedComposition:
    """A config loader that composes once for all runs of a sweep that differ in their seed alone.

    Composing takes a quarter of a second, longer than some runs, and minutes for the thousand runs of a sweep.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader, self.composed = loader, dict[tuple[str, ...], tuple[str, DictConfig]]()

    def __getattr__(self, name: str) -> Any:
        """Returns everything else of the loader."""
        if name == "loader":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Returns the config of a run of the sweep."""
        seeds = [override for override in sweep_overrides if SEED.fullmatch(override)]
        if len(seeds) != 1:
            return self.loader.load_sweep_config(master_config, sweep_overrides)
        settings = tuple(override for override in sweep_overrides if override != seeds[0])
        if settings not in self.composed:
            self.composed[settings] = seeds[0], self.loader.load_sweep_config(master_config, sweep_overrides)
        first, composed = self.composed[settings]
        return with_seed(deepcopy(composed), first, seeds[0])


def with_seed(config: DictConfig, composed: str, seed: str) -> DictConfig:
    """Replaces the seed override that a config was composed with by another one, in place; returns the config."""
    job, overrides = config.hydra.job, config.hydra.overrides
    with read_write(config), open_dict(config):
        config.seed = int(seed.removeprefix("seed="))
        overrides.task = [seed if override == composed else override for override in overrides.task]
        job.override_dirname = ",".join(
            seed if override == composed else override for override in job.override_dirname.split(",")
        )
    return config
