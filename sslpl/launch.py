"""A checked config becomes a run: skipped if it is finished, waited for or taken over, resumed or begun."""

import csv
import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sslpl import checkpoint, identity, lock
from sslpl.build import build_setup, with_fingerprint
from sslpl.cycle import initial_state, run_active_learning
from sslpl.estimate import dry_run
from sslpl.files import write_whole
from sslpl.folder import check_folder, make_folder, open_folder, resumed_provenance
from sslpl.progress import Progress, Terminal, print_result
from sslpl.recording import Interrupted, Recorder, read_status, wandb_names, write_status
from sslpl.runtime import Runtime, provenance
from sslpl.search import in_sweep
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import LabelsRefused, RunInfo, Tracker, UserError, Waiting
from sslpl.validate import checked
from sslpl.views import aubc


class Plan(NamedTuple):
    """A checked config, and which run it is."""

    config: identity.Config
    choices: identity.Choices  # the option that it has in each group
    label: str
    folder: Path


class Outcome(NamedTuple):
    """What became of a plan: finished, resumed (and finished), skipped, reckoned, waiting (for labels), or elsewhere
    (another process's)."""

    state: str
    aubc: float | None = None
    note: str = ""  # what a person is to do


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
    config["dataset"] = with_fingerprint(config["dataset"])
    label = identity.label(config, choices, composed)
    return Plan(config, choices, label, identity.folder(config, choices["dataset"], label))


def launch(plan: Plan, wait: bool = False) -> Outcome:
    """Runs what a plan describes, or goes on with it; "elsewhere" while another process does, unless it is to wait."""
    if (outcome := finished_before(plan)) is not None:
        return outcome
    runtime: Runtime = instantiate(plan.config["runtime"])
    setup = build_setup(plan.config, runtime, plan.folder)
    runtime.set_threads(setup.dataset.train.shape)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("reckoned")
    make_folder(plan.folder, plan.config["runtime"]["output_dir"])
    with lock.owned(plan.folder, wait) as mine:
        if not mine:
            return Outcome("elsewhere")
        outcome = finished_before(plan) or execute(plan, setup, runtime)
    if outcome.note:
        print(outcome.note, flush=True)
    return outcome


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
    if in_sweep():
        retell(plan, float(status["aubc"]))
    return Outcome("skipped", float(status["aubc"]))


def execute(plan: Plan, setup: Setup, runtime: Runtime) -> Outcome:
    """Runs the loop from its last checkpoint, if there is one, and leaves a status whatever happens."""
    facts: dict[str, Any] = {"choices": plan.choices, "precision": "bfloat16" if setup.bfloat16 else "float32"}
    facts["compiled"] = setup.captures or runtime.compile
    origin, changes = resumed_provenance(plan.folder, provenance(setup.device) | facts)
    run = described(plan, origin)
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
            area = close(run, setup, state)
        except (Waiting, LabelsRefused) as pause:
            return paused(pause, recorder, tracker, state)
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


def described(plan: Plan, origin: Mapping[str, Any]) -> RunInfo:
    """What a tracker is told of a plan's run."""
    config, folder = plan.config, plan.folder
    names = {"dataset": folder.parts[-3], "setting": identity.setting(config)}
    return RunInfo(identity.run_id(config), folder.name, plan.label, folder, config, origin, **names)


def retell(plan: Plan, area: float) -> None:
    """Sends what a finished run gave to the W&B run that an agent opened for its config, which else ends empty."""
    tracker: Tracker = instantiate(plan.config["tracker"])
    tracker.start(described(plan, json.loads((plan.folder / "provenance.json").read_text())))
    accuracy = 0.0
    with (plan.folder / "metrics.csv").open(newline="") as file:
        for step, row in enumerate(csv.DictReader(file)):
            tracker.log(step, wandb_names({key: float(value) for key, value in row.items() if value}))
            accuracy = float(row["test_accuracy"])
    tracker.finish(0, {"aubc": area, "final_accuracy": accuracy}, [plan.folder / "queries.csv"])


def last_state(setup: Setup, folder: Path) -> tuple[State, bool, list[str]]:
    """The state that a run goes on from, whether that is a checkpoint's, and what is to be told of it."""
    saved, warning = checkpoint.load(folder / "checkpoint")
    lines = [warning] if warning is not None else []
    if saved is None:
        return initial_state(setup), False, lines
    try:
        state = initial_state(setup.knowing(tuple(saved["class_names"])))
        state.load(saved)
        cycle, phase, epoch, step = saved["position"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its checkpoint does not fit this run; remove the folder to begin anew") from error
    return state, True, [*lines, f"resumed at cycle {cycle + 1}, {phase}, epoch {epoch + 1}, step {step + 1}"]


def paused(pause: Waiting | LabelsRefused, recorder: Recorder, tracker: Tracker, state: State | None) -> Outcome:
    """Leaves a run that waits for labels, those that were refused included, as it is saved."""
    assert state is not None
    assert state.picked is not None
    recorder.pause(state)
    leave(recorder.run.folder, tracker, "waiting", state, code=0, images=len(state.picked.index))
    if isinstance(pause, LabelsRefused):
        raise pause
    return Outcome("waiting", note=str(pause))


def close(run: RunInfo, setup: Setup, state: State) -> float:
    """Leaves a finished run with its final weights alone; returns the area under its budget curve."""
    area, folder = aubc(state.history), run.folder / "checkpoint"
    checkpoint.keep_weights(folder, state.to_dict(), signature(run.config, setup, state))
    write_status(run.folder, "finished", cycle=state.cycle - 1, phase="finished", aubc=area)
    checkpoint.discard(folder)
    lock.forget(run.folder)
    return area


def signature(config: Mapping[str, Any], setup: Setup, state: State) -> checkpoint.Signature:
    """What the networks of a run take and tell; images that were not made from files are taken whole."""
    data = setup.dataset
    shape, resize = data.train.shape, int(config["dataset"].get("resize") or min(data.train.shape[1:]))
    mean, std = (tuple(map(float, values)) for values in (data.mean, data.std))
    return checkpoint.Signature(tuple(map(str, state.class_names)), shape, resize, mean, std)


def leave(
    folder: Path, tracker: Tracker, status: str, state: State | None, code: int = 1, **details: str | int
) -> None:
    """Writes the status of a run that ends early, if that can be written at all, and tells the tracker."""
    with suppress(OSError):
        where = {"cycle": state.cycle, "phase": state.phase} if state is not None else {}
        write_status(folder, status, **where, **details)
    tracker.finish(code, {}, [])


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
