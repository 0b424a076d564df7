"""Runs a command of one config, composed by Hydra, with one line for each error."""

import os
import sys
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sslpl.files import CONF
from sslpl.run.errors import ErrorReport, SweepStopped, catch_errors, print_error


def run_hydra_command(config: str, action: Callable[[DictConfig], None], top_keys: Sequence[str]) -> NoReturn:
    """Calls an action with each config that the command line composes, and exits with the largest of the exit codes.

    `config` is the primary config in `conf/`; `top_keys` are the keys that an error about an unknown one suggests. An
    action may raise SweepStopped to end the whole command.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach `catch_errors`
    results: list[Any] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)
    def run(cfg: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)  # outputs do not move with hydra.job.chdir
        results.append(print_error(catch_errors(lambda: action(cfg), top_keys)))

    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra always writes the config of a multirun
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            results.append(print_error(catch_errors(run, top_keys)))
        except SweepStopped as stop:
            results.append(print_error(stop.report))
    sys.exit(max((result.code for result in results if isinstance(result, ErrorReport)), default=0))
