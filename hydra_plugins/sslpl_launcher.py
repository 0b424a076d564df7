"""The launcher plugin of sslpl: Hydra loads plugins only from this namespace; see `sslpl.run.launchers`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """Plans all runs of a sweep and executes the unfinished ones with another launcher, or in this process."""

    def __init__(self, plugin: str | None, **options: Any) -> None:
        self.plugin, self.options = plugin, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Stores what Hydra passes to every launcher."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Executes the runs of a sweep; returns the area under the budget curve of each, or None."""
        from sslpl.run.launchers import LauncherConfig, launch_sweep

        sweep = LauncherConfig(self.plugin, self.options, self.context, self.config)
        return launch_sweep(sweep, self.task.__self__, job_overrides, initial_job_idx)
