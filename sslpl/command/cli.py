"""The command line: composes the config, runs it, and turns every mistake into one line and an exit code."""

import os
import sys
from functools import partial
from tempfile import TemporaryDirectory

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sslpl.command.jobs import Command, composed, print_jobs
from sslpl.command.mistakes import CONF, SIGNALLED, Mistake, Stopped, guarded, told
from sslpl.command.overrides import with_combined_query
from sslpl.command.search import swept
from sslpl.distributed import confess
from sslpl.processes import World, joined

__all__ = ["CONF", "composed", "main"]


def main() -> None:
    """`python run.py` and `sslpl`: exit code 0 when all runs are finished or wait for labels, 2 for bad input, 1 for a
    failed run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach the one place below
    prefer_our_launchers()
    with joined() as world:
        sys.exit(run_all(world))


def run_all(world: World) -> int:
    """Runs what the command line asks for; returns the exit code."""
    command = Command(world)
    run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(command.run)
    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra writes a multirun's config, wanted or not
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            before = told(guarded(partial(swept, partial(with_combined_query, run))))
            command.await_others()
        except Stopped as stop:
            before = told(stop.mistake)
        if len(command.jobs) > 1:
            print_jobs(command.jobs)
    ends = [end for end in (before, *(job.end for job in command.jobs)) if isinstance(end, Mistake)]
    if ends and ends[0].code < SIGNALLED and not world.leads:
        confess(world, ends[0].line)
    if isinstance(before, Mistake) and before.code > SIGNALLED:
        return before.code
    return max((end.code for end in ends), default=0)


def prefer_our_launchers() -> None:
    """Forgets what plugins offer under the names of our launchers: Hydra would take it for the schema of ours."""
    Plugins.instance()  # looks for them, once
    offered = ConfigStore.instance().repo["hydra"]["launcher"]
    for file in (CONF / "hydra" / "launcher").glob("*.yaml"):
        offered.pop(file.name, None)
