"""Executes one run from its last checkpoint to its end."""

import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from sslpl.config import identity
from sslpl.config.plans import Plan
from sslpl.distributed.collectives import TRACEBACK, ProcessLost, on_rank_zero, publish_failure, published_failure
from sslpl.files import write_whole
from sslpl.loop import empty_state, initial_state, run_active_learning
from sslpl.provenance import provenance
from sslpl.recording import checkpoint
from sslpl.recording.folder import folder_run_id, open_folder, resumed_provenance
from sslpl.recording.progress import Progress
from sslpl.recording.recorder import Recorder
from sslpl.recording.signals import FollowerObserver, Interrupted, listen_for_signals
from sslpl.recording.terminal import Terminal, print_result
from sslpl.run.finish import end_early, failure_message, finish_run, finish_tracker, pause_run
from sslpl.run.outcome import Outcome, RunFailed, Slot
from sslpl.runtime import Runtime
from sslpl.schedule import RESUMABLE_PHASES
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import InvalidLabels, RunInfo, Tracker, UserError, WaitingForLabels


def execute(plan: Plan, setup: Setup, runtime: Runtime, slot: Slot) -> Outcome:
    """Runs the loop from its last checkpoint, if there is one, and writes a status whatever happens."""
    settings: dict[str, Any] = {"choices": plan.choices, "precision": "bfloat16" if setup.bfloat16 else "float32"}
    settings["compiled"] = setup.capture_steps or runtime.compile
    settings["label"] = plan.method_name  # in full: the folder's name may be shortened
    settings["interleaved"] = slot.turns.runs
    origin, changes = resumed_provenance(plan.folder, provenance(setup.device, setup.world) | settings)
    run = run_info(plan, origin)
    tracker: Tracker = instantiate(plan.config["tracker"])
    console, state = Terminal(), None
    progress = Progress(runtime.progress, cycles=setup.budget.cycles, console=console, name=slot.name)
    with progress, ExitStack() as stack:
        setup = setup.with_turns(slot.turns)._replace(announce=progress.message)
        recorder = Recorder(run, setup, tracker, progress, runtime.checkpoint_minutes)
        stack.enter_context(serving(setup, recorder))
        try:
            with recorder.signals(setup.world):
                open_folder(run)
                state, resumed, warnings = load_state(setup, run.folder)
                for line in [*warnings, *(changes if resumed else [])]:
                    progress.message(line)
                tracker.start(run)
                if state.history:  # the process may have been killed between writing the checkpoint and the rest
                    recorder.track(state)
                    recorder.file(state)
                run_active_learning(setup, state, recorder)
            area = finish_run(run, setup, state)
        except (WaitingForLabels, InvalidLabels) as pause:
            return Outcome("waiting", note=pause_run(pause, recorder, tracker, state))
        except (Interrupted, KeyboardInterrupt):
            end_early(recorder, tracker, "interrupted", state)
            raise
        except Exception as error:
            with suppress(OSError):
                tracebacks = published_failure(setup.world, TRACEBACK), traceback.format_exc()
                write_whole(run.folder / "error.log", "\n".join(filter(None, tracebacks)))
            end_early(recorder, tracker, "failed", state, error=failure_message(error))
            raise RunFailed(failure_message(error)) from error
    if runtime.progress != "none" and not slot.name:
        print_result(console, state.history, run.folder, area)
    summary = {"aubc": area, "final_accuracy": float(state.history[-1]["test_accuracy"] or 0.0)}
    finish_tracker(recorder, tracker, 0, summary, [run.folder / "queries.csv"])
    return Outcome("resumed" if resumed else "finished", area)


def serving(setup: Setup, recorder: Recorder) -> AbstractContextManager[None]:
    """Returns the context in which people label while the run waits; an empty one for other oracles."""
    serve = getattr(setup.oracle, "serve", None)
    if serve is None:
        return nullcontext()
    context: AbstractContextManager[None] = serve(
        setup.image_dataset, setup.folder, setup.announce, recorder.run_progress
    )
    return context


def follow(plan: Plan, setup: Setup) -> Outcome:
    """Runs the loop in a process other than rank 0, which executes the plan; writes and prints nothing."""
    follower = FollowerObserver(setup.world)
    try:
        with listen_for_signals(follower, lambda _: None, setup.world):
            run_active_learning(setup, load_state(setup, plan.folder)[0], follower)
    except WaitingForLabels:
        return Outcome("waiting")
    except (Interrupted, KeyboardInterrupt, InvalidLabels):
        raise
    except Exception as error:
        if not isinstance(error, ProcessLost):
            publish_failure(setup.world, traceback.format_exc(), TRACEBACK)
        raise RunFailed(failure_message(error)) from error
    return Outcome("finished")


def run_info(plan: Plan, origin: Mapping[str, Any]) -> RunInfo:
    """Describes the run of a plan to a tracker."""
    config, folder = plan.config, plan.folder
    names = {"dataset": folder.parts[-3], "setting": identity.setting_id(config), "config_id": identity.run_id(config)}
    return RunInfo(folder_run_id(config, origin), folder.name, plan.method_name, folder, config, origin, **names)


def load_state(setup: Setup, folder: Path) -> tuple[State, bool, list[str]]:
    """Loads the state that a run starts from; returns also whether it is a checkpoint's, and lines to print.

    Rank 0 reads the checkpoint, and the other processes receive it: they need not see its disk.
    """
    saved, warning = on_rank_zero(setup.world, lambda: checkpoint.load(folder / "checkpoint"))
    lines = [warning] if warning is not None else []
    if saved is None:
        return initial_state(setup), False, lines
    try:
        state = empty_state(setup.with_class_names(tuple(saved["class_names"])))
        state.load(saved)
        cycle, phase, epoch, step = saved["position"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its checkpoint does not fit this run; remove the folder to start again") from error
    position = f", epoch {epoch + 1}, step {step + 1}" if phase in RESUMABLE_PHASES else ""
    return state, True, [*lines, f"resumed at cycle {cycle + 1}, {phase}{position}"]
