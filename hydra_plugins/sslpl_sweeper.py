"""The sweeper plugin of sslpl: Hydra loads plugins only from this namespace."""

from dataclasses import replace
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(BasicSweeper):
    """Runs every combination of the values given; composes once for all seeds of a setting."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Stores what Hydra passes to every sweeper."""
        from sslpl.run.composition import SharedComposition

        shared: Any = SharedComposition(hydra_context.config_loader)
        context = replace(hydra_context, config_loader=shared)
        super().setup(hydra_context=context, task_function=task_function, config=config)
