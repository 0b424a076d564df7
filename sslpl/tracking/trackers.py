"""Trackers, which send a run's metrics to Weights & Biases or nowhere."""

import atexit
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Literal, NamedTuple, TextIO

from sslpl.tracking.environment import environment_mode, unreadable_variables, without_variables
from sslpl.tracking.history import History, sync_command, unsent_folders
from sslpl.types import RunInfo

Mode = Literal["auto", "online", "offline"]

INIT_SECONDS = 10  # the timeout for an unreachable server, during which the run continues
UPLOAD_SECONDS = 15  # the time W&B has to upload the rest when a run ends
FINISH_SECONDS = 20  # the longest time that a run waits for its tracker
FAILING_SECONDS = 10  # the same once W&B has failed
LONGEST_NAME = 128  # the most characters that W&B accepts
AXES = {"*": "labeled", "train/*": "global_step", "finetune/*": "global_step"}


class _Shared:
    """What the trackers of this process share, because wandb's own process and the environment are those of all."""

    opening = Lock()  # held by the tracker that opens its W&B run
    open_ids: set[str] = set()  # noqa: RUF012  # of the W&B runs that have not ended
    problem = ""  # for which the first of them went offline
    closed = 0  # how often wandb's own process was ended, to be started again


class _Row(NamedTuple):
    step: int
    metrics: Mapping[str, float]


class _End(NamedTuple):
    exit_code: int
    summary: Mapping[str, float]
    files: Sequence[Path]


class NoTracker:
    """Tracks nothing."""

    def start(self, run: RunInfo) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None: ...


class WandbTracker:
    """Sends a run to Weights & Biases from a separate thread, so that no failure or delay affects the run.

    Arguments that are None are taken from the environment (WANDB_MODE and so on), see `conf/tracker/wandb.yaml`.
    """

    def __init__(
        self,
        mode: Mode | None = None,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        dir: str | None = None,
    ) -> None:
        self.mode, self.project, self.entity, self.group, self.dir = mode, project, entity, group, dir
        self._queue: SimpleQueue[_Row | _End] = SimpleQueue()
        self._received: list[_Row | _End] = []
        self._failed_at: float | None = None
        self._reported = False
        self._path: Path | None = None  # of the history
        self._history_before: History | None = None  # the history when an offline recording began
        self._unfinished_folder: Path | None = None  # of an offline recording cut off by the death of wandb's process
        self._thread: Thread | None = None

    def start(self, run: RunInfo) -> None:
        """Opens or resumes the W&B run with id `run.id`, or that of the sweep whose agent started this process."""
        self._queue, self._received, self._failed_at, self._reported = SimpleQueue(), [], None, False
        self._path = self._history_before = self._unfinished_folder = None
        self._thread = Thread(target=self._work, args=(run,), name="wandb-tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one row; it is dropped as a repeat if its step is not above all earlier ones."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(_Row(step, dict(metrics)))

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Sets the final state, attaches the files and waits a bounded time for the upload."""
        if self._thread is None:
            return
        self._queue.put(_End(exit_code, dict(summary), tuple(files)))
        start = time.monotonic()
        while self._thread.is_alive():
            failed_at = self._failed_at
            # After a failure the offline run must still be opened, so the time is counted from there.
            since, limit = (start, FINISH_SECONDS) if failed_at is None else (max(start, failed_at), FAILING_SECONDS)
            if time.monotonic() - since > limit:
                _warn(f"not everything was written or sent within {limit} s")
                break
            self._thread.join(timeout=0.1)

    def _work(self, info: RunInfo) -> None:
        """Sends a run, and sends it once more from its beginning if wandb's own process dies."""
        died = self._track(info)
        if died is not None and self._track(info, died) is None:
            self._report(f"{died}, and was started again")

    def _track(self, info: RunInfo, died: str | None = None) -> str | None:
        """Opens the run and sends it everything; returns how wandb's own process died unless it had `died` before."""
        run, closed = None, _Shared.closed
        try:
            with _Shared.opening:
                closed = _Shared.closed
                if not _Shared.open_ids:
                    _Shared.problem = ""
                if (run := self._open(info)) is not None:
                    _Shared.open_ids.add(run.id)
            if run is not None:
                self._send(run, info)
        except (Exception, SystemExit) as error:  # nothing that wandb raises may stop the run
            self._failed_at, problem = time.monotonic(), _first_line(error)
            if _service_died(error):
                problem = f"its own process ended ({problem})"
                _abandon(run, closed)
                if died is None:
                    self._unfinished_folder = Path(run.dir).parent if run is not None and run.offline else None
                    return problem
            self._report(f"{died or problem}; {self._lost_metrics(info)}")
        finally:
            if run is not None:
                _Shared.open_ids.discard(run.id)
        return None

    def _open(self, info: RunInfo) -> Any:
        """Returns the W&B run, online or offline; None if W&B is disabled."""
        # wandb's error reports would delay the exit of the process when its server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        logging.getLogger("wandb").propagate = False  # it writes its own log file
        unreadable = unreadable_variables()
        with without_variables(unreadable):
            try:
                mode, problem = self._choose_mode(unreadable)
                if mode == "disabled":
                    return None
                if mode == "online" and _Shared.open_ids and _Shared.problem:
                    problem = _Shared.problem
                elif mode == "online":
                    return self._announce(self._init(info, "online"))
            except Exception as error:
                problem, self._failed_at = _first_line(error), time.monotonic()
                if not _Shared.open_ids:  # or it would keep the id of the run that failed to open
                    _close_service()
                    _Shared.problem = problem
            run = self._open_offline(info, problem)
        if problem:
            self._report(f"{problem}; goes on offline")
        return self._announce(run)

    def _open_offline(self, info: RunInfo, problem: str) -> Any:
        try:
            return self._init(info, "offline")
        except Exception as error:
            if not problem or _service_died(error):
                raise
            raise RuntimeError(problem) from error

    def _announce(self, run: Any) -> Any:
        _print(f"W&B: offline, in {Path(run.dir).parent}" if run.offline else f"W&B: {run.url}")
        return run

    def _choose_mode(self, unreadable: Mapping[str, str]) -> tuple[str, str]:
        """Returns online, offline or disabled, and the reason if online was requested but is not possible.

        The mode is the argument's or the environment's; online requires a login.
        """
        import wandb

        requested = self.mode or environment_mode()
        if requested is None and unreadable.get("WANDB_MODE"):
            return "offline", unreadable["WANDB_MODE"]
        settings = wandb.Settings(silent=True)
        if self.mode in ("auto", "online"):
            settings.mode = "online"  # overrides the environment
        configured = _setup(settings).settings.mode  # also from the file that `wandb offline` writes
        requested = requested or {"online": "auto", "dryrun": "offline"}.get(configured, configured)
        if requested in ("offline", "disabled"):
            return requested, ""
        if unreadable.get("WANDB_BASE_URL"):
            return "offline", unreadable["WANDB_BASE_URL"]
        if wandb.login(prompt=False, verify=False):  # finds the key wherever wandb does, without a connection
            return "online", ""
        return "offline", "nobody is logged in (`wandb login`)" if requested == "online" else ""

    def _init(self, info: RunInfo, mode: Literal["online", "offline"]) -> Any:
        import wandb

        _setup(wandb.Settings(silent=True))
        environment = os.environ.get
        names = {"dataset_name": info.dataset, "method_name": info.group, "setting": info.setting}  # for dashboards
        folder = Path(self.dir or environment("WANDB_DIR") or info.folder)
        folder.mkdir(parents=True, exist_ok=True)  # wandb would otherwise write to a temporary folder
        run = wandb.init(  # under a sweep's agent, wandb takes entity, project and id from the sweep
            entity=self.entity,
            project=self.project or environment("WANDB_PROJECT") or "sslpl",
            id=info.id,
            name=info.name,
            group=self.group or environment("WANDB_RUN_GROUP") or group_name(info),
            dir=str(folder),
            config={**info.config, **names, "config_id": info.config_id, "provenance": dict(info.provenance)},
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_settings(),
        )
        for pattern, axis in AXES.items():
            run.define_metric(axis, hidden=True)
            # With step_sync, a row without a number of labels would be given an older one.
            run.define_metric(pattern, step_metric=axis, step_sync=False)
        return run

    def _send(self, run: Any, info: RunInfo) -> None:
        """Logs every row that the W&B run does not have yet, then finishes it."""
        # Under a sweep's agent, the id of the W&B run differs from that of the run.
        path = self._path = info.folder / "wandb" / f"history-{run.id}.json"
        history = self._history_before or History.read(path)
        self._history_before = history if run.offline else None
        # The last step of earlier processes: the server counts the online ones, the file the offline ones.
        last_step = max(history.offline, history.online if run.offline else run.step - 1)
        if run.offline:
            history = history.with_folder(Path(run.dir).parent, info.folder)
            history.write(path)
        # A recording that was cut off lacks its last second: it is recorded again in full, in a new folder.
        if self._unfinished_folder not in (None, Path(run.dir).parent):
            shutil.rmtree(str(self._unfinished_folder), ignore_errors=True)
        for item in self._items():
            if isinstance(item, _End):
                self._end(run, info, item)
                break
            metrics = _without_missing(item.metrics)
            if item.step <= last_step or not metrics:
                continue
            last_step = item.step
            history = history.logged(last_step, bool(run.offline))
            history.write(path)  # before the row, so that a kill in between loses the row instead of doubling it
            run.log({**metrics, "global_step": item.step}, step=item.step, commit=True)
        if waiting := unsent_folders(history, info.folder):
            _print(f"W&B: recorded offline, to send it: {sync_command(waiting)}")

    def _items(self) -> Iterator[_Row | _End]:
        """Yields all items that this process has queued, from the first one on, also when called again."""
        yield from [*self._received]
        while True:
            self._received.append(self._queue.get())
            yield self._received[-1]

    def _end(self, run: Any, info: RunInfo, end: _End) -> None:
        run.summary.update(_without_missing(end.summary))
        try:
            _attach(run, info.id, end.files)
        except Exception as error:  # the final state matters more than the files
            if _service_died(error):
                raise
            self._report(_first_line(error))
        run.finish(exit_code=end.exit_code)

    def _lost_metrics(self, info: RunInfo) -> str:
        """Returns which metrics W&B lacks after a failure, and the command that sends those recorded before it."""
        if self._path is None:
            return "goes on without W&B"
        waiting = unsent_folders(History.read(self._path), info.folder)
        return "the numbers since then did not arrive" + (
            f"; what was recorded before: {sync_command(waiting)}" if waiting else ""
        )

    def _report(self, problem: str) -> None:
        """Prints the first failure in one line, and ignores those that follow from it."""
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        if not self._reported:
            _warn(problem)
        self._reported = True


def _setup(settings: Any) -> Any:
    """Starts wandb's own process if needed, and closes it at exit before wandb's hook can print a traceback."""
    import wandb

    singleton = wandb.setup(settings)
    atexit.unregister(_close_service)
    atexit.register(_close_service)  # the last one registered is called first
    return singleton


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",  # the terminal belongs to the run
        disable_git=True,  # the provenance contains it
        init_timeout=INIT_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
        x_transaction_log_flush_interval=1,  # the seconds that a kill takes from an offline run
        x_file_stream_transmit_interval=2,  # the seconds that a kill takes from an online run
    )


def group_name(info: RunInfo) -> str:
    """Returns the W&B group of a run: dataset, method name and setting, so that its runs differ only in the seed."""
    return f"{f'{info.dataset}/{info.group}'[: LONGEST_NAME - len(info.setting) - 1]}/{info.setting}"


def _warn(problem: str) -> None:
    _print(f"W&B: {problem}; the run's files are complete without it", sys.stderr)


def _print(line: str, file: TextIO | None = None) -> None:
    """Prints a line at once, because the threads of several trackers may print at the same time."""
    print(f"{line}\n", end="", file=file, flush=True)


def _service_died(error: BaseException) -> bool:
    """Returns True if the error means that wandb's own process has died."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "MailboxClosedError", "HandleAbandonedError"})


def _abandon(run: Any, closed: int) -> None:
    """Abandons a W&B run whose service has died, because its threads would print tracebacks.

    Ends the service, unless that was done since it had been `closed` times: then other runs use a new one.
    """
    with _Shared.opening:
        if run is not None:
            with suppress(Exception, SystemExit):
                run.finish()
        if closed == _Shared.closed:
            _close_service()


def _close_service() -> None:
    """Ends wandb's own process if it runs; nothing is raised or printed if it has died."""
    import wandb

    _Shared.closed += 1
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _attach(run: Any, run_id: str, files: Sequence[Path]) -> None:
    import wandb

    if files:
        artifact = wandb.Artifact(f"queries-{run_id}", type="ledger")
        for file in files:  # the policy avoids a copy in the home directory
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def _without_missing(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics without those that are None or NaN."""
    return {name: value for name, value in metrics.items() if value is not None and not math.isnan(value)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def metric_names(row: Mapping[str, float | int | None]) -> dict[str, float]:
    """Returns a row of metrics.csv under the names that a tracker shows, such as `test/accuracy`."""
    return {re.sub("^(test|validation)_", r"\1/", key): value for key, value in row.items() if value is not None}
