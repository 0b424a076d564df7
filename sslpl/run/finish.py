"""Ends a run: finished, waiting for labels, or early; writes its status and final files."""

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslpl.distributed.collectives import ProcessLost
from sslpl.models.embedding_head import whole_weights
from sslpl.recording import checkpoint, lock
from sslpl.recording.recorder import Recorder
from sslpl.recording.run_tables import aubc
from sslpl.recording.status import write_status
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import InvalidLabels, RunInfo, Tracker, UserError, WaitingForLabels

# Errors after which the same command can succeed once the machine recovers; a name that is too long stays too long.
TRANSIENT = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENFILE", "EMFILE", "ENOMEM", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
}


def pause_run(
    pause: WaitingForLabels | InvalidLabels, recorder: Recorder, tracker: Tracker, state: State | None
) -> str:
    """Saves a run that waits for labels; returns the line that says what to do, raises InvalidLabels again."""
    assert state is not None
    assert state.selection is not None
    recorder.pause(state)
    end_early(recorder, tracker, "waiting", state, code=0, images=len(state.selection.index))
    if isinstance(pause, InvalidLabels):
        raise pause
    return str(pause)


def finish_run(run: RunInfo, setup: Setup, state: State) -> float:
    """Reduces the checkpoint of a finished run to its weights; returns the area under its budget curve."""
    area, folder = aubc(state.history), run.folder / "checkpoint"
    checkpoint.save_model(folder, final_weights(setup, state), model_signature(run.config, setup, state))
    write_status(run.folder, "finished", cycle=state.cycle - 1, phase="finished", aubc=area)
    checkpoint.discard(folder)
    lock.remove_lock(run.folder)
    return area


def final_weights(setup: Setup, state: State) -> dict[str, Any]:
    """Returns the weights of backbone and module; those of the whole network if the run trained a head alone."""
    saved = state.to_dict()
    if setup.embedded is not None:
        saved["backbone"] = whole_weights(setup.embedded.network, state.backbone)
    return saved


def model_signature(config: Mapping[str, Any], setup: Setup, state: State) -> checkpoint.ModelSignature:
    """Describes the networks' inputs and classes; images that were not decoded from files are used unresized."""
    data = setup.image_dataset
    shape, resize = data.train.shape, int(config["dataset"].get("resize") or min(data.train.shape[1:]))
    mean, std = (tuple(map(float, values)) for values in (data.mean, data.std))
    return checkpoint.ModelSignature(tuple(map(str, state.class_names)), shape, resize, mean, std)


def end_early(
    recorder: Recorder, tracker: Tracker, status: str, state: State | None, code: int = 1, **details: str | int
) -> None:
    """Writes the status of a run that ends early, if the disk allows it, and finishes its tracker."""
    with suppress(OSError):
        position = {"cycle": state.cycle, "phase": state.phase} if state is not None else {}
        write_status(recorder.run.folder, status, **position, **details)
    finish_tracker(recorder, tracker, code, {}, [])


def finish_tracker(
    recorder: Recorder, tracker: Tracker, code: int, summary: Mapping[str, float], files: Sequence[Path]
) -> None:
    """Finishes the tracker of a run; other runs of this process work while it waits for the upload."""
    with recorder.setup.turns.away():
        tracker.finish(code, summary, files)


def failure_message(error: Exception) -> str:
    """Explains in one line why a run failed and what its user can do."""
    line = " ".join(str(error).split()).removeprefix("[Errno None] ")
    if isinstance(error, UserError | ProcessLost):  # whose line is complete, perhaps with the number of another process
        return line
    if "out of memory" in line.lower() or "can't allocate memory" in line:  # on CUDA; on a CPU
        keys = "training.batch_size, training.unlabeled_batch_limit or budget.candidates"
        return f"out of memory: lower {keys} ({line[:200]})"
    if isinstance(error, OSError) and error.strerror is not None:
        file = f" ({error.filename})" if error.filename else ""
        advice = ": everything saved before is intact; rerun the same command to resume"
        return f"{error.strerror}{file}" + (advice if error.errno in TRANSIENT else "")
    return f"{type(error).__name__}: {line}"
