"""Records a run as it advances: checkpoints, tables, tracked metrics and progress."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

from sslpl.budget import Budget
from sslpl.distributed.collectives import all_reduce_max
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.files import write_json, write_whole
from sslpl.forecast import (
    Forecast,
    TargetForecast,
    forecast_batches,
    forecast_line,
    forecast_summary,
    forecast_target,
)
from sslpl.learn.divergence import check_losses
from sslpl.loop import cycle_row
from sslpl.oracle.label_request import image_names
from sslpl.recording import checkpoint, run_tables
from sslpl.recording.plots import learning_curve
from sslpl.recording.progress import Progress
from sslpl.recording.signals import Interrupted, listen_for_signals
from sslpl.recording.status import write_status
from sslpl.schedule import FINISHED, RESUMABLE_PHASES, TRAINING_PHASES
from sslpl.setup import Setup
from sslpl.state import Row, State
from sslpl.tracking.trackers import metric_names
from sslpl.types import RunInfo, RunProgress, Step, Tracker

# The end of a phase is recorded once this many times the seconds that it takes have passed: at most 2% of the time.
RECORDING_COST_FACTOR = 50
# The learning curve is drawn again once this many times the seconds of a drawing have passed, and at the end.
PLOT_COST_FACTOR = 20
FORECAST_BATCHES = 3
FIRST_PLOT_SECONDS = 1.0  # what the first drawing may cost, with the import of Matplotlib


class Recorder:
    """An observer of a run (see `sslpl.loop.Observer`) that writes everything in the run's folder."""

    def __init__(self, run: RunInfo, setup: Setup, tracker: Tracker, progress: Progress, minutes: float) -> None:
        self.run, self.setup, self.tracker, self.progress = run, setup, tracker, progress
        self.save_interval = 60 * minutes
        self.saved_at, self.save_seconds, self.file_seconds = time.monotonic(), 0.0, 0.0
        self.filed = False  # whether the tables have every finished cycle
        self.plotted_at, self.plot_seconds = time.monotonic(), FIRST_PLOT_SECONDS
        self.signal: int | None = None
        self.shown: tuple[int, int] | None = None  # cycle and number of labels
        self.state: State | None = None  # of the current phase

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Shows that a phase starts or is resumed."""
        self.state = state
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        write_status(self.run.folder, "running", cycle=state.cycle, phase=state.phase, **owner)
        if self.shown != (state.cycle, len(state.pool.labeled)):
            self.shown = (state.cycle, len(state.pool.labeled))
            self.progress.cycle(*self.shown)
        schedule = setup.schedule(state.module is not None)
        epochs = steps = 1
        if state.phase in RESUMABLE_PHASES:
            images = images_per_epoch(state)
            epochs, steps = schedule.epochs(state.phase, images), schedule.steps_per_epoch(images)
        self.progress.phase(state.phase, total=epochs * steps, done=state.epoch * steps + state.step)
        if state.phase in RESUMABLE_PHASES:
            self.progress.epoch(state.epoch, epochs)

    def on_step(self, state: State, step: Step) -> None:
        """Shows a step and tracks its metrics; saves if the checkpoint interval has passed or a signal came."""
        if step.waited:
            self.progress.exclude(step.waited)
        else:
            self.progress.advance(1, step.images)
        if step.metrics is not None:
            schedule = self.setup.schedule(state.module is not None)
            epochs = schedule.epochs(state.phase, images_per_epoch(state))
            self.tracker.log(schedule.tracker_step(state.cycle, state.phase, state.epoch), step.metrics)
            self.progress.epoch(min(state.epoch, epochs - 1), epochs)
        stop = self._shared_signal()
        if state.phase in RESUMABLE_PHASES and (stop or self._seconds_since_save() >= self.save_interval):
            self._record(state)
        if stop:
            raise Interrupted(stop)

    def on_phase_end(self, state: State) -> None:
        """Tracks and shows a finished cycle; saves and writes the tables at the end, for people, or if it is cheap."""
        stop = self._shared_signal()
        cycle_ends = state.phase in ("train", FINISHED)  # or the initial labels have arrived
        if cycle_ends:
            self.filed = False
            self.track(state)  # at once: W&B takes no row before its last one, and the next cycle has rows of its own
            self._show_cycle(state)
        # What people are asked, and what they have answered, must survive: a run that is resumed from before may ask
        # about other images.
        asks_people = self.setup.has_unknown_labels and (cycle_ends or state.phase == "label")
        if state.phase == FINISHED or asks_people or stop or self._seconds_since_save() >= self._cheap_interval():
            self._record(state)
        if stop and state.phase != FINISHED:
            raise Interrupted(stop)

    def _show_cycle(self, state: State) -> None:
        """Shows the metrics of the last finished cycle, and how many labels have come from people."""
        if state.history:
            self.progress.cycle_done(state.history[-1], forecast_line(*self._forecasts(state.history)))
        if state.label_batches and state.label_batches[-1].cycle == state.cycle:
            count = int((state.ledger.cycle == state.cycle).sum())
            rejected = len(state.pool.rejected)
            note = f"; {rejected:,} of no class so far" if rejected else ""
            self.progress.message(f"labels of {count:,} images received from {state.label_batches[-1].source}{note}")

    def pause(self, state: State) -> None:
        """Saves a run that waits for labels, and writes its tables with the metrics of the unfinished cycle."""
        self._save(state)
        self.file(state)
        if state.phase == "label":
            rows = [*state.history, cycle_row(state)]
            write_whole(self.run.folder / "metrics.csv", run_tables.metrics_csv(rows))
            if line := forecast_line(*self._forecasts(rows)):
                self.progress.message(line)

    def run_progress(self) -> RunProgress:
        """Returns how far the run is; another thread may call it at any time."""
        state, cycles = self.state, self.setup.budget.cycles
        if state is None:
            return RunProgress("start", 0, cycles, 0, None, ())
        rows = [row for row in [*state.history, state.row] if row.get("test_accuracy") is not None]
        curve = tuple((int(row["labeled"] or 0), float(row["test_accuracy"] or 0.0)) for row in rows)
        left = self.progress.seconds_to_next_query()
        forecast = forecast_line(*self._forecasts(rows))
        return RunProgress(state.phase, state.cycle, cycles, len(state.pool.labeled), left, curve, forecast)

    def _forecasts(self, rows: Sequence[Row]) -> tuple[list[Forecast], TargetForecast | None]:
        """Returns the forecasts of the next batches and of the target from the rows of the finished cycles."""
        labeled, accuracy = (tuple(float(row[key] or 0) for row in rows) for key in ("labeled", "test_accuracy"))
        data = self.setup.dataset
        return forecasts_of(labeled, accuracy, len(data.test), self.setup.budget, len(data.train))

    def signals(self, world: World = SINGLE_PROCESS) -> AbstractContextManager[None]:
        """Returns a context that stops the run on a signal (see `sslpl.recording.signals.listen_for_signals`)."""
        return listen_for_signals(self, lambda line: self.progress.message(line), world)

    def file(self, state: State) -> None:
        """Writes the tables of the finished cycles."""
        start, folder, self.filed = time.monotonic(), self.run.folder, True
        write_whole(folder / "queries.csv", run_tables.queries_csv(state.ledger))
        if state.label_batches:
            names = image_names(self.setup.dataset, state.ledger.index)
            write_whole(folder / "labeling" / "ledger.csv", run_tables.labels_csv(state, names))
            write_whole(folder / "labeling" / "classes.csv", run_tables.classes_csv(state.class_names))
            if len(state.pool.rejected):
                rejected = image_names(self.setup.dataset, state.pool.rejected)
                write_whole(folder / "labeling" / "rejected.csv", run_tables.rejected_csv(rejected))
        if state.annotations is not None:
            names = image_names(self.setup.dataset, state.annotations.index)
            table = run_tables.annotations_csv(state.annotations, names, state.class_names)
            write_whole(folder / "labeling" / "annotations.csv", table)
        if not state.history:
            return
        write_whole(folder / "metrics.csv", run_tables.metrics_csv(state.history))
        summary = run_tables.summary(state.history) | forecast_summary(*self._forecasts(state.history))
        write_json(folder / "summary.json", summary)
        self.file_seconds = time.monotonic() - start
        if state.phase == FINISHED or self._plot_is_due():
            self._plot(state)

    def track(self, state: State) -> None:
        """Tracks the metrics of the finished cycles; a tracker drops rows that it has."""
        steps = self.setup.schedule(state.module is not None).tracker_steps
        for cycle, row in enumerate(state.history, start=1):
            self.tracker.log(cycle * steps - 1, metric_names(row))

    def _plot_is_due(self) -> bool:
        return time.monotonic() - self.plotted_at >= PLOT_COST_FACTOR * self.plot_seconds

    def _plot(self, state: State) -> None:
        start, folder = time.monotonic(), self.run.folder
        dataset = folder.parent.parent.name
        learning_curve(state.history, folder / "learning_curve.png", f"{self.run.group} on {dataset}", self.run.name)
        self.plotted_at = time.monotonic()
        self.plot_seconds = self.plotted_at - start

    def _shared_signal(self) -> int | None:
        """Returns the signal that any process has received so far; a later one is seen after the next step."""
        stop = all_reduce_max(self.setup.world, self.signal or self.setup.turns.signal)
        if stop and self.setup.world.size > 1:
            self.progress.message(f"{signal.Signals(stop).name}: saving")
        return stop

    def _seconds_since_save(self) -> float:
        return time.monotonic() - self.saved_at

    def _cheap_interval(self) -> float:
        return min(self.save_interval, RECORDING_COST_FACTOR * (self.save_seconds + self.file_seconds))

    def _record(self, state: State) -> None:
        self._save(state)
        if not self.filed:
            self.file(state)

    def _save(self, state: State) -> None:
        check_losses(state)  # a diverged state must not replace the last checkpoint, from which the run can resume
        start = time.monotonic()
        checkpoint.save(self.run.folder / "checkpoint", state.to_dict())
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - start


@lru_cache(maxsize=8)  # a labeling page asks again and again
def forecasts_of(
    labeled: tuple[float, ...], accuracy: tuple[float, ...], test_images: int, budget: Budget, pool: int
) -> tuple[list[Forecast], TargetForecast | None]:
    """Returns the forecasts of a run's next batches, within the pool, and of its target."""
    per_cycle = int(budget.per_cycle)
    batches = min(FORECAST_BATCHES, int(pool - labeled[-1]) // per_cycle) if labeled else 0
    forecasts = forecast_batches(labeled, accuracy, test_images, per_cycle, batches)
    if budget.target is None or not labeled:
        return forecasts, None
    return forecasts, forecast_target(labeled, accuracy, test_images, per_cycle, pool, budget.target)


def images_per_epoch(state: State) -> int:
    """Returns the number of labeled images in an epoch of the current phase."""
    return len(state.joint_train_index if state.phase in TRAINING_PHASES else state.train_index)
