"""The loop of one run, from its last checkpoint to its end."""

import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from sslpl import identity
from sslpl.command.endings import close, failure, leave, paused
from sslpl.command.plans import Outcome, Plan, RunFailed
from sslpl.cycle import empty_state, initial_state, run_active_learning
from sslpl.distributed import TRACEBACK, ProcessLost, confess, failure_of, led
from sslpl.recording import checkpoint
from sslpl.recording.files import write_whole
from sslpl.recording.folder import folder_run_id, open_folder, resumed_provenance
from sslpl.recording.progress import Progress
from sslpl.recording.recorder import STEPPED, Recorder
from sslpl.recording.stopping import Follower, Interrupted, listening
from sslpl.recording.terminal import Terminal, print_result
from sslpl.runtime import Runtime, provenance
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import LabelsRefused, RunInfo, Tracker, UserError, Waiting


def execute(plan: Plan, setup: Setup, runtime: Runtime, name: str) -> Outcome:
    """Runs the loop from its last checkpoint, if there is one, and leaves a status whatever happens."""
    facts: dict[str, Any] = {"choices": plan.choices, "precision": "bfloat16" if setup.bfloat16 else "float32"}
    facts["compiled"] = setup.captures or runtime.compile
    facts["label"] = plan.label  # whole; the folder's name may be shortened
    origin, changes = resumed_provenance(plan.folder, provenance(setup.device, setup.world) | facts)
    run = described(plan, origin)
    tracker: Tracker = instantiate(plan.config["tracker"])
    console, state = Terminal(), None
    with Progress(runtime.progress, cycles=setup.budget.cycles, console=console, name=name) as progress:
        setup = setup._replace(announce=progress.message)
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
                parts = failure_of(setup.world, TRACEBACK), traceback.format_exc()
                write_whole(run.folder / "error.log", "\n".join(filter(None, parts)))
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
        if not isinstance(error, ProcessLost):
            confess(setup.world, traceback.format_exc(), TRACEBACK)
        raise RunFailed(failure(error)) from error
    return Outcome("finished")


def described(plan: Plan, origin: Mapping[str, Any]) -> RunInfo:
    """What a tracker is told of a plan's run."""
    config, folder = plan.config, plan.folder
    names = {"dataset": folder.parts[-3], "setting": identity.setting(config), "config_id": identity.run_id(config)}
    return RunInfo(folder_run_id(config, origin), folder.name, plan.label, folder, config, origin, **names)


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
