"""Sweeps that choose each run by the areas of those before: of Hydra's sweepers, and of W&B's agents."""

import os
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def is_search() -> bool:
    """Whether the job belongs to a sweep that chooses its runs by the areas of those before."""
    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and not str(config.sweeper.get("_target_", "")).endswith(".BasicSweeper")


def in_wandb_sweep() -> bool:
    """Whether the agent of a W&B sweep started this process, for one run that it has opened there."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def run_search(run: Callable[[], object]) -> None:
    """Runs all jobs; that a search has no best run, because none gave an area, is for these to tell."""
    try:
        run()
    except ValueError as error:  # of Optuna's, after the last trial
        if "No trials are completed" not in str(error):
            raise
