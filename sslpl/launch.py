"""A checked config becomes a run: skipped if it is finished, waited for or taken over, resumed or begun."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sslpl import checkpoint, identity, lock
from sslpl.build import build_setup
from sslpl.cycle import empty_state, initial_state, run_active_learning
from sslpl.estimate import dry_run
from sslpl.files import write_whole
from sslpl.folder import check_folder, make_folder, open_folder, resumed_provenance
from sslpl.models.starting import fingerprint
from sslpl.progress import Progress, Terminal, print_result
from sslpl.recording import Interrupted, Recorder, read_status, write_status
from sslpl.runtime import Runtime, provenance
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import RunInfo, Tracker, UserError
from sslpl.validate import checked
from sslpl.views import aubc


class Plan(NamedTuple):
    """A checked config, and which run it is."""

    config: identity.Config
    choices: identity.Choices  # the option that it has in each group
    label: str
    folder: Path


class Outcome(NamedTuple):
    """What became of a plan: finished, resumed (and finished), skipped, reckoned, or elsewhere (another process's)."""

    state: str
    aubc: float | None = None


class RunFailed(Exception):
    """A run ended before its time; its one line says why."""


def planned(
    cfg: DictConfig,
    choices: identity.Choices,
    composed: Callable[[list[str]], tuple[identity.Config, identity.Choices]],
) -> Plan:
    """Checks a config and finds out which run it is; UserError for the first mistake."""
    container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config = checked({key: value for key, value in container.items() if key != "hydra"})
    config = identity.with_content(config, fingerprint)
    label = identity.label(config, choices, composed)
    return Plan(config, choices, label, identity.folder(config, choices["dataset"], label))


def launch(plan: Plan, wait: bool = False) -> Outcome:
    """Runs what a plan describes, or goes on with it; "elsewhere" while another process does, unless it is to wait."""
    if (outcome := finished_before(plan)) is not None:
        return outcome
    runtime: Runtime = instantiate(plan.config["runtime"])
    setup = build_setup(plan.config, runtime)
    runtime.set_threads(setup.dataset.train.shape)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("reckoned")
    make_folder(plan.folder, plan.config["runtime"]["output_dir"])
    with lock.owned(plan.folder, wait) as mine:
        if not mine:
            return Outcome("elsewhere")
        return finished_before(plan) or execute(plan, setup, runtime)


def finished_before(plan: Plan) -> Outcome | None:
    """The outcome of a run that is finished already; UserError if its folder holds another run."""
    if not plan.folder.exists():
        return None
    check_folder(plan.folder, plan.config)
    status = read_status(plan.folder)
    if status.get("state") != "finished":
        return None
    checkpoint.discard(plan.folder / "checkpoint")  # a kill may have come just before
    lock.forget(plan.folder)
    print(f"finished already: {plan.folder}", flush=True)
    return Outcome("skipped", float(status["aubc"]))


def execute(plan: Plan, setup: Setup, runtime: Runtime) -> Outcome:
    """Runs the loop from its last checkpoint, if there is one, and leaves a status whatever happens."""
    facts: dict[str, Any] = {"choices": plan.choices, "precision": "bfloat16" if setup.bfloat16 else "float32"}
    facts["compiled"] = setup.captures or runtime.compile
    origin, changes = resumed_provenance(plan.folder, provenance(setup.device) | facts)
    run = RunInfo(identity.run_id(plan.config), plan.folder.name, plan.label, plan.folder, plan.config, origin)
    tracker: Tracker = instantiate(plan.config["tracker"])
    console, state = Terminal(), None
    with Progress(runtime.progress, cycles=setup.budget.cycles, console=console) as progress:
        recorder = Recorder(run, setup, tracker, progress, runtime.checkpoint_minutes)
        try:
            with recorder.signals():
                open_folder(run)
                state, resumed, lines = last_state(setup, run.folder)
                for line in [*lines, *(changes if resumed else [])]:
                    progress.message(line)
                tracker.start(run)
                if state.history:  # a kill may have come between the checkpoint and the tables
                    recorder.file(state)
                run_active_learning(setup, state, recorder)
            area = close(run, state)
        except (Interrupted, KeyboardInterrupt):
            leave(run.folder, tracker, "interrupted", state)
            raise
        except Exception as error:
            with suppress(OSError):
                write_whole(run.folder / "error.log", traceback.format_exc())
            leave(run.folder, tracker, "failed", state, error=failure(error))
            raise RunFailed(failure(error)) from error
    if runtime.progress != "none":
        print_result(console, state.history, run.folder, area)
    final = {"aubc": area, "final_accuracy": float(state.history[-1]["test_accuracy"] or 0.0)}
    tracker.finish(0, final, [run.folder / "queries.csv"])
    return Outcome("resumed" if resumed else "finished", area)


def last_state(setup: Setup, folder: Path) -> tuple[State, bool, list[str]]:
    """The state that a run goes on from, whether that is a checkpoint's, and what is to be told of it."""
    saved, warning = checkpoint.load(folder / "checkpoint")
    lines = [warning] if warning is not None else []
    if saved is None:
        return initial_state(setup), False, lines
    state = empty_state(setup)
    try:
        state.load(saved)
        cycle, phase, epoch, step = saved["position"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its checkpoint does not fit this run; remove the folder to begin anew") from error
    return state, True, [*lines, f"resumed at cycle {cycle + 1}, {phase}, epoch {epoch + 1}, step {step + 1}"]


def close(run: RunInfo, state: State) -> float:
    """Leaves a finished run with its final weights alone; returns the area under its budget curve."""
    area, folder = aubc(state.history), run.folder / "checkpoint"
    checkpoint.keep_weights(folder, state.to_dict())
    write_status(run.folder, "finished", cycle=state.cycle - 1, phase="finished", aubc=area)
    checkpoint.discard(folder)
    lock.forget(run.folder)
    return area


def leave(folder: Path, tracker: Tracker, status: str, state: State | None, **details: str) -> None:
    """Writes the status of a run that ends early, if that can be written at all, and tells the tracker."""
    with suppress(OSError):
        where = {"cycle": state.cycle, "phase": state.phase} if state is not None else {}
        write_status(folder, status, **where, **details)
    tracker.finish(1, {}, [])


def failure(error: Exception) -> str:
    """Why a run failed, in one line that says what its user can do."""
    line = " ".join(str(error).split()).removeprefix("[Errno None] ")
    if "out of memory" in line.lower() or "can't allocate memory" in line:  # on CUDA, on a CPU
        keys = "training.batch_size, training.unlabeled_batch_limit or budget.candidates"
        return f"out of memory: lower {keys} ({line[:200]})"
    if isinstance(error, OSError) and error.strerror is not None:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}: what was saved before is whole, and the same command goes on from there"
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
