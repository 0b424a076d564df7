"""A checked config becomes a run: skipped if it is finished, waited for or taken over, resumed or begun."""

import csv
import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sslpl import identity
from sslpl.build import build_setup, with_fingerprint
from sslpl.command.endings import close, failure, leave, paused
from sslpl.command.estimate import dry_run
from sslpl.command.search import in_sweep
from sslpl.command.validate import checked
from sslpl.cycle import empty_state, initial_state, run_active_learning
from sslpl.distributed import led
from sslpl.models.starting import fingerprint
from sslpl.processes import ALONE, World
from sslpl.recording import checkpoint, lock
from sslpl.recording.files import write_whole
from sslpl.recording.folder import check_folder, make_folder, open_folder, resumed_provenance
from sslpl.recording.progress import Progress, Terminal, print_result
from sslpl.recording.recorder import STEPPED, Recorder, read_status, wandb_names
from sslpl.recording.stopping import Follower, Interrupted, listening
from sslpl.runtime import Runtime, provenance
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import LabelsRefused, RunInfo, Tracker, UserError, Waiting


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


class Place(NamedTuple):
    """Where one of several processes runs a plan: the GPU that it was given, the name that its lines begin with, and
    the processes that share the run."""

    device: str | None = None
    name: str = ""
    world: World = ALONE


HERE = Place()


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
    config = identity.with_content(config, fingerprint)
    label = identity.label(config, choices, composed)
    return Plan(config, choices, label, identity.folder(config, choices["dataset"], label))


def launch(plan: Plan, wait: bool = False, place: Place = HERE) -> Outcome:
    """Runs what a plan describes, or goes on with it; "elsewhere" while another process does, unless it is to wait."""
    world = place.world
    if (outcome := led(world, lambda: finished_before(plan))) is not None:
        return outcome
    given = {} if place.device is None else {"device": place.device}
    runtime: Runtime = instantiate(plan.config["runtime"], **given)
    if runtime.dry_run and not world.leads:  # a single process is reckoned with
        return Outcome("reckoned")
    setup = build_setup(plan.config, runtime, plan.folder, ALONE if runtime.dry_run else world)
    runtime.set_threads(setup.dataset.train.shape, setup.world)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("reckoned")
    led(world, lambda: make_folder(plan.folder, plan.config["runtime"]["output_dir"]))
    with ExitStack() as stack:
        if not led(world, lambda: stack.enter_context(lock.owned(plan.folder, wait))):
            return Outcome("elsewhere")
        outcome = led(world, lambda: finished_before(plan))
        if outcome is None:
            outcome = execute(plan, setup, runtime, place.name) if world.leads else follow(plan, setup)
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


def execute(plan: Plan, setup: Setup, runtime: Runtime, name: str) -> Outcome:
    """Runs the loop from its last checkpoint, if there is one, and leaves a status whatever happens."""
    facts: dict[str, Any] = {"choices": plan.choices, "precision": "bfloat16" if setup.bfloat16 else "float32"}
    facts["compiled"] = setup.captures or runtime.compile
    origin, changes = resumed_provenance(plan.folder, provenance(setup.device, setup.world) | facts)
    run = described(plan, origin)
    tracker: Tracker = instantiate(plan.config["tracker"])
    console, state = Terminal(), None
    with Progress(runtime.progress, cycles=setup.budget.cycles, console=console, name=name) as progress:
        recorder = Recorder(run, setup, tracker, progress, runtime.checkpoint_minutes)
        try:
            with recorder.signals(setup.world):
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
            return Outcome("waiting", note=paused(pause, recorder, tracker, state))
        except (Interrupted, KeyboardInterrupt):
            leave(run.folder, tracker, "interrupted", state)
            raise
        except Exception as error:
            with suppress(OSError):
                write_whole(run.folder / "error.log", traceback.format_exc())
            leave(run.folder, tracker, "failed", state, error=failure(error))
            raise RunFailed(failure(error)) from error
    if runtime.progress != "none" and not name:
        print_result(console, state.history, run.folder, area)
    final = {"aubc": area, "final_accuracy": float(state.history[-1]["test_accuracy"] or 0.0)}
    tracker.finish(0, final, [run.folder / "queries.csv"])
    return Outcome("resumed" if resumed else "finished", area)


def follow(plan: Plan, setup: Setup) -> Outcome:
    """Computes along with the process that executes a plan; writes and shows nothing."""
    follower = Follower(setup.world)
    try:
        with listening(follower, lambda _: None, setup.world):
            run_active_learning(setup, last_state(setup, plan.folder)[0], follower)
    except Waiting:
        return Outcome("waiting")
    except (Interrupted, KeyboardInterrupt, LabelsRefused):
        raise
    except Exception as error:
        raise RunFailed(failure(error)) from error
    return Outcome("finished")


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
    """The state that a run goes on from, whether that is a checkpoint's, and what is to be told of it.

    The first of several processes reads the checkpoint: the others need not see its disk.
    """
    saved, warning = led(setup.world, lambda: checkpoint.load(folder / "checkpoint"))
    lines = [warning] if warning is not None else []
    if saved is None:
        return initial_state(setup), False, lines
    try:
        state = empty_state(setup.knowing(tuple(saved["class_names"])))
        state.load(saved)
        cycle, phase, epoch, step = saved["position"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its checkpoint does not fit this run; remove the folder to begin anew") from error
    within = f", epoch {epoch + 1}, step {step + 1}" if phase in STEPPED else ""
    return state, True, [*lines, f"resumed at cycle {cycle + 1}, {phase}{within}"]
