"""The command line: composes the config, runs it, and turns every mistake into one line and an exit code."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from rich.text import Text

from sslpl.launch import Outcome, Plan, RunFailed, failure, launch, planned
from sslpl.progress import Terminal
from sslpl.recording import Interrupted, read_status
from sslpl.types import UserError
from sslpl.validate import checked, nearest

T = TypeVar("T")
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.exists())
BAD_INPUT, FAILED = 2, 1


class Mistake(NamedTuple):
    """What went wrong, in one line, and the exit code for it."""

    line: str
    code: int


class Job(NamedTuple):
    """One run of a sweep, or the only one: its folder (its overrides while its config is not valid) and its end."""

    name: str
    end: Outcome | Mistake


def main() -> None:
    """`python run.py` and `sslpl`: exit code 0 when all runs are finished, 2 for bad input, 1 for a failed run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let every exception reach the one place below
    jobs: list[Job] = []
    later: dict[int, Plan] = {}  # runs of other processes, by their place among the jobs
    presets = cache(composed)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def run(cfg: DictConfig) -> float | None:
        job, plan = run_job(cfg, presets)
        if plan is not None:
            later[len(jobs)] = plan
        jobs.append(job)
        return None if isinstance(job.end, Mistake) else job.end.aubc

    with TemporaryDirectory(prefix="sslpl-") as scratch:  # Hydra writes a multirun's config, wanted or not
        os.environ["SSLPL_SCRATCH"] = scratch
        try:
            before = guarded(run)
            for place, plan in later.items():
                jobs[place] = Job(str(plan.folder), guarded(partial(await_other, plan)))
        except Stopped as stop:
            before = stop.mistake
        if len(jobs) > 1:
            print_jobs(jobs)
    ends = [before, *(job.end for job in jobs)]
    sys.exit(max((end.code for end in ends if isinstance(end, Mistake)), default=0))


def run_job(cfg: DictConfig, presets: Callable[..., Any]) -> tuple[Job, Plan | None]:
    """Runs one composed config; also returns its plan if another process is at it."""
    hydra_config = HydraConfig.get()
    choices = group_choices(hydra_config.runtime.choices)
    searched = tuple(override for override in hydra_config.overrides.hydra if override.startswith("hydra.searchpath"))
    plan = guarded(lambda: planned(cfg, choices, lambda overrides: presets((*searched, *overrides))))
    if isinstance(plan, Mistake):
        return Job(hydra_config.job.override_dirname or "run", plan), None
    end = guarded(lambda: launch(plan))
    elsewhere = not isinstance(end, Mistake) and end.state == "elsewhere"
    return Job(str(plan.folder), end), plan if elsewhere else None


def await_other(plan: Plan) -> Outcome:
    """Waits until another process has ended with a run; runs what it has left undone."""
    status = read_status(plan.folder)
    owner = f"process {status.get('process', '?')} on {status.get('host', '?')}"
    print(f"waiting for {owner}, which is running {plan.folder}", flush=True)
    return launch(plan, wait=True)


def print_jobs(jobs: list[Job]) -> None:
    """The table at the end of a sweep: what became of each run."""
    states = ["failed" if isinstance(job.end, Mistake) else job.end.state for job in jobs]
    table = Table("run", "state", "aubc, or why not", box=None, pad_edge=False)
    for job, state in zip(jobs, states, strict=True):
        area = None if isinstance(job.end, Mistake) else job.end.aubc
        said = job.end.line if isinstance(job.end, Mistake) else "" if area is None else f"{area:.2%}"
        table.add_row(Text(job.name, overflow="fold"), state, Text(said, overflow="fold"))
    console = Terminal()
    if not console.is_terminal:
        console.width = 250  # in a log a path stays in one piece
    console.print("", table, sep="\n")
    console.print(", ".join(f"{count} {state}" for state, count in Counter(states).items()), highlight=False)


def group_choices(choices: Any) -> dict[str, str]:
    """The option chosen in each group, without Hydra's own."""
    return {str(key): str(value) for key, value in choices.items() if not str(key).startswith("hydra")}


def composed(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked config that a list of overrides gives, and the option that it has in each group."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = group_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return checked(config), choices


class Stopped(BaseException):
    """A signal ended the whole sweep; no Exception, because Hydra catches those of a job."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake.line)
        self.mistake = mistake


def guarded(action: Callable[[], T], words: Sequence[str] = ()) -> T | Mistake:
    """What `action` returns, or what went wrong, told in one line on standard error; Stopped after a signal.

    `words` are what an argument can begin with, if not the groups of `python run.py`.
    """
    try:
        return action()
    except UserError as error:
        return complain(str(error), BAD_INPUT)
    except InstantiationException as error:  # Hydra's wrapping of what a constructor raised
        cause = error.__cause__ or error
        return complain(str(cause), BAD_INPUT if isinstance(cause, UserError) else FAILED)
    except (HydraException, OmegaConfBaseException) as error:
        return complain(composition_mistake(error, words), BAD_INPUT)
    except Interrupted as error:
        raise Stopped(complain(f"{error}; the same command goes on", 128 + error.signum)) from error
    except KeyboardInterrupt as error:
        raise Stopped(complain("interrupted; the same command goes on", 130)) from error
    except RunFailed as error:
        return complain(str(error), FAILED)
    except Exception as error:
        return complain(failure(error), FAILED)


def complain(line: str, code: int) -> Mistake:
    """Prints one line to standard error."""
    mistake = Mistake(" ".join(line.split()), code)
    print("sslpl:", mistake.line, file=sys.stderr, flush=True)
    return mistake


def composition_mistake(error: Exception, words: Sequence[str] = ()) -> str:
    """What is wrong with an override or an option, with the nearest known name."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {message.splitlines()[0]}"
    if found := re.search(r"Could not override '([\w./@]+)'", message):
        key = found.group(1)
        return f"{given(key)}: no such key; {nearest(key.rpartition('.')[2], known_beside(key, error, words))}"
    return message.split("\n")[0] + (f" ({given_key(message)})" if given_key(message) else "")


def given(key: str) -> str:
    """The argument as the user typed it."""
    return next((argument for argument in sys.argv[1:] if argument.lstrip("+~").startswith(f"{key}=")), key)


def given_key(message: str) -> str:
    """The full key that a config error names."""
    found = re.search(r"full_key: (\S+)", message)
    return found.group(1) if found else ""


def known_beside(key: str, error: Exception, words: Sequence[str] = ()) -> list[str]:
    """The keys that stand where a misspelled one was looked for; the groups for a word without a dot."""
    parent = getattr(error.__cause__, "parent_node", None)
    if "." in key and parent is not None:
        return [str(name) for name in parent]
    return [*words] or [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"] + ["seed"]
