"""How a run ends: finished, waiting for labels, or early; what it leaves in each case."""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslpl.distributed.collectives import ProcessLost
from sslpl.recording import checkpoint, lock
from sslpl.recording.recorder import Recorder
from sslpl.recording.run_tables import aubc
from sslpl.recording.status import write_status
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import InvalidLabels, RunInfo, Tracker, UserError, WaitingForLabels

# What a machine can get over, whereupon the same command succeeds; a name that is too long stays too long.
PASSING = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENFILE", "EMFILE", "ENOMEM", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
}


def pause_run(
    pause: WaitingForLabels | InvalidLabels, recorder: Recorder, tracker: Tracker, state: State | None
) -> str:
    """Leaves a run that waits for labels as it is saved; returns what is to be done, raises what is to be mended."""
    assert state is not None
    assert state.selection is not None
    recorder.pause(state)
    end_early(recorder.run.folder, tracker, "waiting", state, code=0, images=len(state.selection.index))
    if isinstance(pause, InvalidLabels):
        raise pause
    return str(pause)


def finish_run(run: RunInfo, setup: Setup, state: State) -> float:
    """Leaves a finished run with its final weights alone; returns the area under its budget curve."""
    area, folder = aubc(state.history), run.folder / "checkpoint"
    checkpoint.keep_weights(folder, state.to_dict(), model_signature(run.config, setup, state))
    write_status(run.folder, "finished", cycle=state.cycle - 1, phase="finished", aubc=area)
    checkpoint.discard(folder)
    lock.remove_lock(run.folder)
    return area


def model_signature(config: Mapping[str, Any], setup: Setup, state: State) -> checkpoint.ModelSignature:
    """What the networks of a run take and tell; images that were not made from files are taken whole."""
    data = setup.dataset
    shape, resize = data.train.shape, int(config["dataset"].get("resize") or min(data.train.shape[1:]))
    mean, std = (tuple(map(float, values)) for values in (data.mean, data.std))
    return checkpoint.ModelSignature(tuple(map(str, state.class_names)), shape, resize, mean, std)


def end_early(
    folder: Path, tracker: Tracker, status: str, state: State | None, code: int = 1, **details: str | int
) -> None:
    """Writes the status of a run that ends early, if that can be written at all, and tells the tracker."""
    with suppress(OSError):
        where = {"cycle": state.cycle, "phase": state.phase} if state is not None else {}
        write_status(folder, status, **where, **details)
    tracker.finish(code, {}, [])


def failure_message(error: Exception) -> str:
    """Why a run failed, in one line that says what its user can do."""
    line = " ".join(str(error).split()).removeprefix("[Errno None] ")
    if isinstance(error, UserError | ProcessLost):  # whose line may be that of another process
        return line
    if "out of memory" in line.lower() or "can't allocate memory" in line:  # on CUDA, on a CPU
        keys = "training.batch_size, training.unlabeled_batch_limit or budget.candidates"
        return f"out of memory: lower {keys} ({line[:200]})"
    if isinstance(error, OSError) and error.strerror is not None:
        where = f" ({error.filename})" if error.filename else ""
        passing = ": what was saved before is whole, and the same command goes on from there"
        return f"{error.strerror}{where}" + (passing if error.errno in PASSING else "")
    return f"{type(error).__name__}: {line}"
