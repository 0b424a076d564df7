"""What a run leaves while it works: checkpoints, tables, the streamed numbers, a line for whoever watches."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sslpl.cycle import cycle_row
from sslpl.data.batches import split
from sslpl.distributed import agreed
from sslpl.learn.divergence import check_losses
from sslpl.learn.joint import trained_index
from sslpl.oracle.requests import image_names
from sslpl.processes import ALONE, World
from sslpl.recording import checkpoint, views
from sslpl.recording.files import write_whole
from sslpl.recording.plots import learning_curve
from sslpl.recording.progress import Progress
from sslpl.recording.stopping import Interrupted, listening
from sslpl.setup import Setup, Step, Training
from sslpl.state import FINISHED, State
from sslpl.types import RunInfo, Tracker

STEPPED = ("train", "finetune")  # phases that can be saved, and gone on with, between two steps
SPARING = 50  # a phase's border is not saved before so many times the cost of a checkpoint has gone by: at most 2%


class Recorder:
    """Observes a run (see `cycle.Observer`) and files all that it leaves in its folder."""

    def __init__(self, run: RunInfo, setup: Setup, tracker: Tracker, progress: Progress, minutes: float) -> None:
        self.run, self.setup, self.tracker, self.progress = run, setup, tracker, progress
        self.save_every = 60 * minutes
        self.saved_at, self.cost = time.monotonic(), 0.0
        self.signal: int | None = None
        self.shown: tuple[int, int] | None = None  # cycle and labels

    def phase(self, setup: Setup, state: State) -> None:
        """Shows that a phase begins or goes on."""
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        write_status(self.run.folder, "running", cycle=state.cycle, phase=state.phase, **owner)
        if self.shown != (state.cycle, len(state.pool.labeled)):
            self.shown = (state.cycle, len(state.pool.labeled))
            self.progress.cycle(*self.shown)
        steps, epochs = steps_per_epoch(setup, state), epochs_of(setup, state)
        self.progress.phase(state.phase, total=epochs * steps, done=state.epoch * steps + state.step)
        if state.phase in STEPPED:
            self.progress.epoch(state.epoch, epochs)

    def step(self, state: State, step: Step) -> None:
        """Shows and streams a step; saves when it is time or when a signal came."""
        self.progress.advance(1, step.images)
        if step.metrics is not None:
            self.tracker.log(self._moment(state), step.metrics)
            self.progress.epoch(min(state.epoch, epochs_of(self.setup, state) - 1), epochs_of(self.setup, state))
        stop = self._agreed()
        if state.phase in STEPPED and (stop or self._unsaved() >= self.save_every):
            self._save(state)
        if stop:
            raise Interrupted(stop)

    def border(self, state: State) -> None:
        """Saves at the end of a cycle, of a phase if that costs little, and streams and files a cycle's numbers."""
        stop = self._agreed()
        cycle_ends = state.phase in ("train", FINISHED)  # or labels to begin with have come
        asks = state.phase == "label" and self.setup.asks  # what people are asked is never asked otherwise
        if cycle_ends or asks or stop or self._unsaved() >= min(self.save_every, SPARING * self.cost):
            self._save(state)
        if cycle_ends:
            self.file(state)
            if state.history:
                self.progress.cycle_done(state.history[-1])
            if state.received and state.received[-1].cycle == state.cycle:
                count = int((state.ledger.cycle == state.cycle).sum())
                self.progress.message(f"labels of {count:,} images received from {state.received[-1].source}")
        if stop and state.phase != FINISHED:
            raise Interrupted(stop)

    def pause(self, state: State) -> None:
        """Saves a run that waits for labels, and files what is known of the cycle under way."""
        self._save(state)
        self.file(state)
        if state.phase == "label":
            write_whole(self.run.folder / "metrics.csv", views.metrics_csv([*state.history, cycle_row(state)]))

    def signals(self, world: World = ALONE) -> AbstractContextManager[None]:
        """See `stopping.listening`."""
        return listening(self, lambda line: self.progress.message(line), world)

    def _moment(self, state: State) -> int:
        """A number that grows with every epoch of every cycle: the tracker's step."""
        training = self.setup.training
        before = training.epochs if state.phase == "finetune" else 0
        return state.cycle * moments(training) + before + state.epoch

    def file(self, state: State) -> None:
        """Writes the tables of the finished cycles and streams their numbers; a tracker drops what it has already."""
        folder, training = self.run.folder, self.setup.training
        write_whole(folder / "queries.csv", views.queries_csv(state.ledger))
        if state.received:
            names = image_names(self.setup.dataset, state.ledger.index)
            write_whole(folder / "labeling" / "ledger.csv", views.labels_csv(state, names))
            write_whole(folder / "labeling" / "classes.csv", views.classes_csv(state.class_names))
        if not state.history:
            return
        write_whole(folder / "metrics.csv", views.metrics_csv(state.history))
        write_json(folder / "summary.json", views.summary(state.history))
        dataset = folder.parent.parent.name
        learning_curve(state.history, folder / "learning_curve.png", f"{self.run.group} on {dataset}", self.run.name)
        for cycle, row in enumerate(state.history, start=1):
            self.tracker.log(cycle * moments(training) - 1, wandb_names(row))

    def _agreed(self) -> int | None:
        """The signal that has come to any process by now: one that comes later waits for the next step."""
        stop = agreed(self.setup.world, self.signal)
        if stop and self.setup.world.size > 1:
            self.progress.message(f"{signal.Signals(stop).name}: saving")
        return stop

    def _unsaved(self) -> float:
        return time.monotonic() - self.saved_at

    def _save(self, state: State) -> None:
        check_losses(state)  # the checkpoint before stays, from which a run can go on
        since = time.monotonic()
        checkpoint.save(self.run.folder / "checkpoint", state.to_dict())
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - since


def moments(training: Training) -> int:
    """How many steps of the tracker a cycle takes: its epochs, and one for its own numbers at the end."""
    return training.epochs + training.finetune_epochs + 2


def epochs_of(setup: Setup, state: State) -> int:
    """How many epochs the phase under way has; 1 for the phases without."""
    return {"train": setup.training.epochs, "finetune": setup.training.finetune_epochs}.get(state.phase, 1)


def steps_per_epoch(setup: Setup, state: State) -> int:
    """How many steps an epoch of the phase under way has; 1 for the phases without epochs."""
    if state.phase not in STEPPED:
        return 1
    index = trained_index(state) if state.phase == "train" else state.learned
    return len(split(index, setup.training.batch_size))


def wandb_names(row: Mapping[str, float | int | None]) -> dict[str, float]:
    """A row of metrics.csv under the names that a tracker shows: `test/accuracy` and so on."""
    return {re.sub("^(test|validation)_", r"\1/", key): value for key, value in row.items() if value is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, whole."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Writes what state a run is in: running, finished, failed, interrupted or waiting."""
    write_json(folder / "status.json", {"state": state, **details})


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a run; an empty one if it has not begun, or if the file is damaged."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
