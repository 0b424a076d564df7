"""Hyperparameter searches, which choose each run by the results of earlier ones: Hydra's sweepers and W&B's agents."""

import os
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def is_search() -> bool:
    """True if the job belongs to a hyperparameter search rather than a grid."""
    config = HydraConfig.get()
    sweeper = str(config.sweeper.get("_target_", ""))
    return config.mode == RunMode.MULTIRUN and not sweeper.endswith((".GridSweeper", ".BasicSweeper"))


def in_wandb_sweep() -> bool:
    """True if the agent of a W&B sweep started this process for a run that it has opened."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def run_search(run: Callable[[], object]) -> None:
    """Runs all jobs; ignores that a search without any result has no best run, because its jobs report why."""
    try:
        run()
    except ValueError as error:  # raised by Optuna after the last trial
        if "No trials are completed" not in str(error):
            raise
