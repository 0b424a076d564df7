"""The runs of one command: which they are, and what became of each."""

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
from sslpl.run.errors import BAD_INPUT, SIGNALLED, ErrorReport, SweepStopped, catch_errors, print_error
from sslpl.run.launch import launch
from sslpl.run.outcome import Outcome, Slot
from sslpl.run.search import is_search


class Job(NamedTuple):
    """One run of a sweep, or the only one: its folder (its overrides while its config is not valid) and its end."""

    name: str
    end: Outcome | ErrorReport


class Command:
    """What one command has done so far: its jobs in their order."""

    def __init__(self, world: World = SINGLE_PROCESS) -> None:
        self.slot = Slot(world=world)
        self.jobs: list[Job] = []
        self.deferred: dict[int, Plan] = {}  # runs of other commands, by their place among the jobs
        self.presets = cache(preset)

    def run(self, cfg: DictConfig) -> float | None:
        """Runs one composed config in this process; returns the area under its budget curve, for a sweeper."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            self.refuse_sweep()
        os.chdir(hydra_config.runtime.cwd)  # whatever hydra.job.chdir says: a run's folder is runtime.output_dir's
        plan = print_error(job_plan(cfg, hydra_config, self.presets))
        if isinstance(plan, ErrorReport):
            return self.add(Job(hydra_config.job.override_dirname or "run", plan))
        return self.add(Job(str(plan.folder), print_error(catch_errors(partial(self.attempt, plan)))))

    def attempt(self, plan: Plan) -> Outcome | ErrorReport:
        """Runs a plan; one that another process is running is waited for now in a search, later otherwise."""
        end = catch_errors(partial(launch, plan, slot=self.slot))
        if isinstance(end, Outcome) and end.state == "elsewhere":
            if is_search():  # which needs the area now
                return wait_for_other(plan, self.slot)
            self.deferred[len(self.jobs)] = plan
        return end

    def refuse_sweep(self) -> None:
        """Stopped if several processes would run a sweep together."""
        if self.slot.world.size > 1:
            line = "torchrun: several processes share one run, not a sweep; give its runs one after the other"
            raise SweepStopped(ErrorReport(line, BAD_INPUT))

    def add(self, job: Job) -> float | None:
        """Takes the next job's end; returns its area under the budget curve."""
        self.jobs.append(job)
        return None if isinstance(job.end, ErrorReport) else job.end.aubc

    def wait_for_others(self) -> None:
        """Waits until other commands have ended with their runs; runs what they have left undone."""
        for place, plan in self.deferred.items():
            self.jobs[place] = Job(str(plan.folder), print_error(wait_for_other(plan, self.slot)))


def wait_for_other(plan: Plan, slot: Slot) -> Outcome | ErrorReport:
    """Waits until another command has ended with a run; runs what it has left undone."""
    print(f"waiting for {describe_owner(plan)}, which is running {plan.folder}", flush=True)
    return catch_errors(partial(launch, plan, wait=True, slot=slot))


def describe_owner(plan: Plan) -> str:
    """Who is running a plan, as its status says."""
    status = read_status(plan.folder)
    return f"process {status.get('process', '?')} on {status.get('host', '?')}"


def job_plan(cfg: DictConfig, hydra_config: Any, presets: Callable[..., Any]) -> Plan | ErrorReport:
    """Which run a composed config is."""

    def plan() -> Plan:
        searched = search_path_override(hydra_config.searchpath)
        choices = group_choices(hydra_config.runtime.choices)
        return make_plan(cfg, choices, lambda overrides: presets((searched, *overrides)))

    return catch_errors(plan)


def search_path_override(folders: Sequence[str]) -> str:
    """The override that gives a composition the folders of options of a command line or of a primary config."""
    quoted = (folder.replace("'", "\\'") for folder in folders)
    return "hydra.searchpath=[" + ",".join(f"'{folder}'" for folder in quoted) + "]"


def group_choices(choices: Any) -> dict[str, str]:
    """The option chosen in each group, without Hydra's own."""
    return {str(key): str(value) for key, value in choices.items() if not str(key).startswith("hydra")}


def compose_config(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked config that a list of overrides gives, and the option that it has in each group."""
    config, choices = preset(overrides)
    return validated_config(config), choices


def preset(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The same without checking that the values go together: a preset may need what is chosen beside it."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = group_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return typed_config(config), choices


def end_state(end: Outcome | ErrorReport) -> str:
    """What became of a job, in a word."""
    if isinstance(end, ErrorReport):
        return "interrupted" if end.code > SIGNALLED else "failed"
    return end.state


def print_jobs(jobs: list[Job]) -> None:
    """The table at the end of a sweep: what became of each run."""
    states = [end_state(job.end) for job in jobs]
    table = Table("run", "state", "aubc, or why not", box=None, pad_edge=False)
    for job, state in zip(jobs, states, strict=True):
        area = None if isinstance(job.end, ErrorReport) else job.end.aubc
        said = job.end.line if isinstance(job.end, ErrorReport) else job.end.note if area is None else f"{area:.2%}"
        table.add_row(Text(job.name, overflow="fold"), state, Text(said, overflow="fold"))
    console = Terminal()
    if not console.is_terminal:
        console.width = 250  # in a log a path stays in one piece
    console.print("", table, sep="\n")
    console.print(", ".join(f"{count} {state}" for state, count in Counter(states).items()), highlight=False)
