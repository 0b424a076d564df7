"""Where Hydra looks for launchers: it takes them from this namespace alone; see `sslpl.run.launchers`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """Plans all runs of a sweep here, and gives those that are left to do to another launcher."""

    def __init__(self, plugin: str, **options: Any) -> None:
        self.plugin, self.options = plugin, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra gives to every launcher."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The area under the budget curve of each run, or None."""
        from sslpl.run.launchers import LauncherConfig, launch_sweep

        sweep = LauncherConfig(self.plugin, self.options, self.context, self.config)
        return launch_sweep(sweep, self.task.__self__, job_overrides, initial_job_idx)
