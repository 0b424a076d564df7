"""The command line: composes the config, runs it, and turns every error into one line and an exit code."""

import os
import sys
from functools import partial
from tempfile import TemporaryDirectory

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sslpl.distributed.collectives import publish_failure
from sslpl.distributed.world import World, process_group
from sslpl.files import CONF
from sslpl.run.errors import SIGNAL_BASE, ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.jobs import Command, compose_config, print_jobs
from sslpl.run.overrides import with_combined_query
from sslpl.run.search import run_search

__all__ = ["CONF", "compose_config", "main"]


def main() -> None:
    """Runs the command line; exits with 0 if all runs finished or wait for labels, 2 for bad input, 1 if one failed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print exceptions itself
    unregister_plugin_launchers()
    with process_group() as world:
        sys.exit(run_command(world))


def run_command(world: World) -> int:
    """Runs what the command line asks for; returns the exit code."""
    command = Command(world)
    run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(command.run)
    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra always writes the config of a multirun somewhere
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            command_result = print_error(catch_errors(partial(run_search, partial(with_combined_query, run))))
            command.run_deferred()
        except SweepStopped as stop:
            command_result = print_error(stop.report)
        if len(command.jobs) > 1:
            print_jobs(command.jobs)
    results = (command_result, *(job.result for job in command.jobs))
    reports = [result for result in results if isinstance(result, ErrorReport)]
    if reports and reports[0].code < SIGNAL_BASE and not world.is_rank_zero:
        publish_failure(world, reports[0].line)
    if isinstance(command_result, ErrorReport) and command_result.code > SIGNAL_BASE:
        return command_result.code
    return max((report.code for report in reports), default=0)


def unregister_plugin_launchers() -> None:
    """Removes the launcher configs of plugins that have the names of ours: Hydra would use them as schemas of ours."""
    Plugins.instance()  # loads the plugins, which register their configs
    registered = ConfigStore.instance().repo["hydra"]["launcher"]
    for file in (CONF / "hydra" / "launcher").glob("*.yaml"):
        registered.pop(file.name, None)
