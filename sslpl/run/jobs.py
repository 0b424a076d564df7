"""The jobs of one command: each run with its plan and its result."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.table import Table
from rich.text import Text

from sslpl.config.plans import Plan, make_plan
from sslpl.config.validation import typed_config, validated_config
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.recording.status import read_status
from sslpl.recording.terminal import Terminal
from sslpl.run.errors import BAD_INPUT, SIGNAL_BASE, ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.launch import launch
from sslpl.run.outcome import Outcome, Slot
from sslpl.run.search import is_search

JobResult = Outcome | ErrorReport


class Job(NamedTuple):
    """One run of a sweep, or the only run of a command, and its result."""

    name: str  # the run's folder; its overrides if its config is not valid
    result: JobResult


class Command:
    """Executes the runs of one command and keeps their results in order."""

    def __init__(self, world: World = SINGLE_PROCESS) -> None:
        self.slot = Slot(world=world)
        self.jobs: list[Job] = []
        self.deferred: dict[int, Plan] = {}  # runs that other processes hold, by position among the jobs
        self.presets = cache(preset)

    def run(self, cfg: DictConfig) -> float | None:
        """Runs one composed config in this process; returns the area under its budget curve, for a sweeper."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            self.refuse_sweep()
        # Hydra may have changed the folder (hydra.job.chdir), and output_dir is relative to the original one.
        os.chdir(hydra_config.runtime.cwd)
        plan = print_error(job_plan(cfg, hydra_config, self.presets))
        if isinstance(plan, ErrorReport):
            return self.add(Job(hydra_config.job.override_dirname or "run", plan))
        return self.add(Job(str(plan.folder), print_error(catch_errors(partial(self.attempt, plan)))))

    def attempt(self, plan: Plan) -> JobResult:
        """Runs a plan; if another process is running it, waits for that now in a search, after the other jobs else."""
        result = catch_errors(partial(launch, plan, slot=self.slot))
        if isinstance(result, Outcome) and result.state == "running":
            if is_search():  # the next trial depends on the result
                return wait_for_other(plan, self.slot)
            self.deferred[len(self.jobs)] = plan
        return result

    def refuse_sweep(self) -> None:
        """Raises SweepStopped if several processes would run a sweep together."""
        if self.slot.world.size > 1:
            line = "torchrun: several processes share one run, not a sweep; start its runs one after the other"
            raise SweepStopped(ErrorReport(line, BAD_INPUT))

    def add(self, job: Job) -> float | None:
        """Appends a job; returns its area under the budget curve."""
        self.jobs.append(job)
        return None if isinstance(job.result, ErrorReport) else job.result.aubc

    def run_deferred(self) -> None:
        """Waits for the runs that other processes hold; completes those that they left unfinished."""
        for position, plan in self.deferred.items():
            self.jobs[position] = Job(str(plan.folder), print_error(wait_for_other(plan, self.slot)))


def wait_for_other(plan: Plan, slot: Slot) -> JobResult:
    """Waits until no other process holds a run; completes it if it is unfinished."""
    print_waiting(plan)
    return catch_errors(partial(launch, plan, wait=True, slot=slot))


def print_waiting(plan: Plan) -> None:
    """Prints that this process waits for the one that runs a plan, as named in the run's status."""
    status = read_status(plan.folder)
    owner = f"process {status.get('process', '?')} on {status.get('host', '?')}"
    print(f"waiting for {owner}, which is running {plan.folder}", flush=True)


def job_plan(cfg: DictConfig, hydra_config: Any, presets: Callable[..., Any]) -> Plan | ErrorReport:
    """Plans the run of a composed config; a report if the config is not valid."""

    def plan() -> Plan:
        search_path = search_path_override(hydra_config.searchpath)
        choices = group_choices(hydra_config.runtime.choices)
        return make_plan(cfg, choices, lambda overrides: presets((search_path, *overrides)))

    return catch_errors(plan)


def search_path_override(folders: Sequence[str]) -> str:
    """Returns the override by which a composition sees the config folders of a command line or a primary config."""
    quoted = (folder.replace("'", "\\'") for folder in folders)
    return "hydra.searchpath=[" + ",".join(f"'{folder}'" for folder in quoted) + "]"


def group_choices(choices: Any) -> dict[str, str]:
    """Returns the option chosen in each group, without Hydra's own groups."""
    return {str(key): str(value) for key, value in choices.items() if not str(key).startswith("hydra")}


def compose_config(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Composes and checks a config; returns it and the option chosen in each group."""
    config, choices = preset(overrides)
    return validated_config(config), choices


def preset(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Does the same without checks between groups, because a preset may require another choice."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = group_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return typed_config(config), choices


def result_state(result: JobResult) -> str:
    """Returns the state of a job in one word."""
    if isinstance(result, ErrorReport):
        return "interrupted" if result.code > SIGNAL_BASE else "failed"
    return result.state


def result_text(result: JobResult) -> str:
    """Returns the area under the budget curve, or the reason for not having one."""
    if isinstance(result, ErrorReport):
        return result.line
    return result.note if result.aubc is None else f"{result.aubc:.2%}"


def print_jobs(jobs: list[Job]) -> None:
    """Prints the table at the end of a sweep: state and result of each run."""
    states = [result_state(job.result) for job in jobs]
    table = Table("run", "state", "aubc or reason", box=None, pad_edge=False)
    for job, state in zip(jobs, states, strict=True):
        table.add_row(Text(job.name, overflow="fold"), state, Text(result_text(job.result), overflow="fold"))
    console = Terminal()
    if not console.is_terminal:
        console.width = 250  # keeps each path on one line of a log
    console.print("", table, sep="\n")
    console.print(", ".join(f"{count} {state}" for state, count in Counter(states).items()), highlight=False)
