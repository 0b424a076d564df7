"""The command line: composes the config, runs it, and turns every mistake into one line and an exit code."""

import os
import sys
from functools import partial
from tempfile import TemporaryDirectory

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sslpl.distributed.collectives import publish_failure
from sslpl.distributed.world import World, process_group
from sslpl.run.errors import CONF, SIGNALLED, ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.jobs import Command, compose_config, print_jobs
from sslpl.run.overrides import with_combined_query
from sslpl.run.search import run_search

__all__ = ["CONF", "compose_config", "main"]


def main() -> None:
    """`python run.py` and `sslpl`: exit code 0 when all runs are finished or wait for labels, 2 for bad input, 1 for a
    failed run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach the one place below
    use_own_launcher_configs()
    with process_group() as world:
        sys.exit(run_command(world))


def run_command(world: World) -> int:
    """Runs what the command line asks for; returns the exit code."""
    command = Command(world)
    run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(command.run)
    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra writes a multirun's config, wanted or not
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            before = print_error(catch_errors(partial(run_search, partial(with_combined_query, run))))
            command.wait_for_others()
        except SweepStopped as stop:
            before = print_error(stop.mistake)
        if len(command.jobs) > 1:
            print_jobs(command.jobs)
    ends = [end for end in (before, *(job.end for job in command.jobs)) if isinstance(end, ErrorReport)]
    if ends and ends[0].code < SIGNALLED and not world.is_rank_zero:
        publish_failure(world, ends[0].line)
    if isinstance(before, ErrorReport) and before.code > SIGNALLED:
        return before.code
    return max((end.code for end in ends), default=0)


def use_own_launcher_configs() -> None:
    """Forgets what plugins offer under the names of our launchers: Hydra would take it for the schema of ours."""
    Plugins.instance()  # looks for them, once
    offered = ConfigStore.instance().repo["hydra"]["launcher"]
    for file in (CONF / "hydra" / "launcher").glob("*.yaml"):
        offered.pop(file.name, None)
