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

from sslpl.command.launch import launch
from sslpl.command.mistakes import BAD_INPUT, SIGNALLED, Mistake, Stopped, guarded, told
from sslpl.command.plans import Outcome, Place, Plan, planned
from sslpl.command.search import searching
from sslpl.command.validate import checked, typed
from sslpl.processes import ALONE, World
from sslpl.recording.recorder import read_status
from sslpl.recording.terminal import Terminal


class Job(NamedTuple):
    """One run of a sweep, or the only one: its folder (its overrides while its config is not valid) and its end."""

    name: str
    end: Outcome | Mistake


class Command:
    """What one command has done so far: its jobs in their order."""

    def __init__(self, world: World = ALONE) -> None:
        self.place = Place(world=world)
        self.jobs: list[Job] = []
        self.later: dict[int, Plan] = {}  # runs of other commands, by their place among the jobs
        self.presets = cache(preset)

    def run(self, cfg: DictConfig) -> float | None:
        """Runs one composed config in this process; returns the area under its budget curve, for a sweeper."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            self.refuse_sweep()
        os.chdir(hydra_config.runtime.cwd)  # whatever hydra.job.chdir says: a run's folder is runtime.output_dir's
        plan = told(plan_of(cfg, hydra_config, self.presets))
        if isinstance(plan, Mistake):
            return self.ended(Job(hydra_config.job.override_dirname or "run", plan))
        return self.ended(Job(str(plan.folder), told(guarded(partial(self.attempt, plan)))))

    def attempt(self, plan: Plan) -> Outcome | Mistake:
        """Runs a plan; one that another process is running is waited for now in a search, later otherwise."""
        end = guarded(partial(launch, plan, place=self.place))
        if isinstance(end, Outcome) and end.state == "elsewhere":
            if searching():  # which needs the area now
                return await_other(plan, self.place)
            self.later[len(self.jobs)] = plan
        return end

    def refuse_sweep(self) -> None:
        """Stopped if several processes would run a sweep together."""
        if self.place.world.size > 1:
            line = "torchrun: several processes share one run, not a sweep; give its runs one after the other"
            raise Stopped(Mistake(line, BAD_INPUT))

    def ended(self, job: Job) -> float | None:
        """Takes the next job's end; returns its area under the budget curve."""
        self.jobs.append(job)
        return None if isinstance(job.end, Mistake) else job.end.aubc

    def await_others(self) -> None:
        """Waits until other commands have ended with their runs; runs what they have left undone."""
        for place, plan in self.later.items():
            self.jobs[place] = Job(str(plan.folder), told(await_other(plan, self.place)))


def await_other(plan: Plan, place: Place) -> Outcome | Mistake:
    """Waits until another command has ended with a run; runs what it has left undone."""
    print(f"waiting for {owner(plan)}, which is running {plan.folder}", flush=True)
    return guarded(partial(launch, plan, wait=True, place=place))


def owner(plan: Plan) -> str:
    """Who is running a plan, as its status says."""
    status = read_status(plan.folder)
    return f"process {status.get('process', '?')} on {status.get('host', '?')}"


def plan_of(cfg: DictConfig, hydra_config: Any, presets: Callable[..., Any]) -> Plan | Mistake:
    """Which run a composed config is."""

    def plan() -> Plan:
        searched = search_path_override(hydra_config.searchpath)
        choices = group_choices(hydra_config.runtime.choices)
        return planned(cfg, choices, lambda overrides: presets((searched, *overrides)))

    return guarded(plan)


def search_path_override(folders: Sequence[str]) -> str:
    """The override that gives a composition the folders of options of a command line or of a primary config."""
    quoted = (folder.replace("'", "\\'") for folder in folders)
    return "hydra.searchpath=[" + ",".join(f"'{folder}'" for folder in quoted) + "]"


def group_choices(choices: Any) -> dict[str, str]:
    """The option chosen in each group, without Hydra's own."""
    return {str(key): str(value) for key, value in choices.items() if not str(key).startswith("hydra")}


def composed(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked config that a list of overrides gives, and the option that it has in each group."""
    config, choices = preset(overrides)
    return checked(config), choices


def preset(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The same without checking that the values go together: a preset may need what is chosen beside it."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = group_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return typed(config), choices


def state_of(end: Outcome | Mistake) -> str:
    """What became of a job, in a word."""
    if isinstance(end, Mistake):
        return "interrupted" if end.code > SIGNALLED else "failed"
    return end.state


def print_jobs(jobs: list[Job]) -> None:
    """The table at the end of a sweep: what became of each run."""
    states = [state_of(job.end) for job in jobs]
    table = Table("run", "state", "aubc, or why not", box=None, pad_edge=False)
    for job, state in zip(jobs, states, strict=True):
        area = None if isinstance(job.end, Mistake) else job.end.aubc
        said = job.end.line if isinstance(job.end, Mistake) else job.end.note if area is None else f"{area:.2%}"
        table.add_row(Text(job.name, overflow="fold"), state, Text(said, overflow="fold"))
    console = Terminal()
    if not console.is_terminal:
        console.width = 250  # in a log a path stays in one piece
    console.print("", table, sep="\n")
    console.print(", ".join(f"{count} {state}" for state, count in Counter(states).items()), highlight=False)
