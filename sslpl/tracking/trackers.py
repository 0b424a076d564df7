"""Where a run's numbers go besides its own folder: nowhere, or to Weights & Biases."""

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
from threading import Thread
from typing import Any, Literal, NamedTuple

from sslpl.tracking.environment import environment_mode, hidden, unreadable_variables
from sslpl.tracking.history import History, sync_command, unsent
from sslpl.types import RunInfo

Mode = Literal["auto", "online", "offline"]

INIT_SECONDS = 10  # an unreachable server is given up after this; the run goes on meanwhile
UPLOAD_SECONDS = 15  # what W&B may take to upload the rest when a run ends
FINISH_SECONDS = 20  # what a run waits for its tracker at most
FAILING_SECONDS = 10  # the same after W&B has failed once
LONGEST_NAME = 128  # of what W&B takes
AXES = {"*": "labeled", "train/*": "global_step", "finetune/*": "global_step"}


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
    """Sends a run to Weights & Biases from a thread of its own: no failure or delay reaches the run.

    What is None comes from the environment (WANDB_MODE and so on), see `conf/tracker/wandb.yaml`.
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
        self._taken: list[_Row | _End] = []
        self._failed_at: float | None = None
        self._complained = False
        self._path: Path | None = None  # of the history
        self._before: History | None = None  # the history when an offline recording began
        self._cut_off: Path | None = None  # an offline recording that wandb's own process has not finished
        self._thread: Thread | None = None

    def start(self, run: RunInfo) -> None:
        """Opens the W&B run of `run.id`, or that of the sweep whose agent started this process, or continues it."""
        self._queue, self._taken, self._failed_at, self._complained = SimpleQueue(), [], None, False
        self._path = self._before = self._cut_off = None
        self._thread = Thread(target=self._work, args=(run,), name="wandb-tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one row: its step must be above all before it, or the row is dropped as a repeat."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(_Row(step, dict(metrics)))

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Sets the final state, attaches the files and waits a bounded time for the upload."""
        if self._thread is None:
            return
        self._queue.put(_End(exit_code, dict(summary), tuple(files)))
        began = time.monotonic()
        while self._thread.is_alive():
            failed_at = self._failed_at
            # After a failure the offline run has yet to be opened: the time for it begins there.
            since, limit = (began, FINISH_SECONDS) if failed_at is None else (max(began, failed_at), FAILING_SECONDS)
            if time.monotonic() - since > limit:
                _say(f"not everything was written or sent within {limit} s")
                break
            self._thread.join(timeout=0.1)

    def _work(self, info: RunInfo) -> None:
        """Sends a run, and once more from its beginning if wandb's own process dies."""
        died = self._live(info)
        if died is not None and self._live(info, died) is None:
            self._complain(f"{died}, and was started again")

    def _live(self, info: RunInfo, died: str | None = None) -> str | None:
        """Opens the run and sends it everything; returns how wandb's own process died unless it had `died` before."""
        run = None
        try:
            if (run := self._open(info)) is not None:
                self._send(run, info)
        except (Exception, SystemExit) as error:  # whatever happens inside wandb, the run goes on
            self._failed_at, problem = time.monotonic(), _first_line(error)
            if _service_died(error):
                problem = f"its own process ended ({problem})"
                _drop(run)
                if died is None:
                    self._cut_off = Path(run.dir).parent if run is not None and run.offline else None
                    return problem
            self._complain(f"{died or problem}; {self._lost(info)}")
        return None

    def _open(self, info: RunInfo) -> Any:
        """Returns the W&B run, online or offline; None where W&B is disabled."""
        # wandb's reports on its own errors delay the exit of the process when its server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        logging.getLogger("wandb").propagate = False  # it has a file of its own
        unreadable = unreadable_variables()
        with hidden(unreadable):
            try:
                mode, problem = self._choose_mode(unreadable)
                if mode == "disabled":
                    return None
                if mode == "online":
                    return self._announced(self._init(info, "online"))
            except Exception as error:
                problem, self._failed_at = _first_line(error), time.monotonic()
                _close_service()  # it would hold on to the id of a run that failed to open
            run = self._opened_offline(info, problem)
        if problem:
            self._complain(f"{problem}; goes on offline")
        return self._announced(run)

    def _opened_offline(self, info: RunInfo, problem: str) -> Any:
        try:
            return self._init(info, "offline")
        except Exception as error:
            if not problem or _service_died(error):
                raise
            raise RuntimeError(problem) from error

    def _announced(self, run: Any) -> Any:
        print(f"W&B: offline, in {Path(run.dir).parent}" if run.offline else f"W&B: {run.url}", flush=True)
        return run

    def _choose_mode(self, unreadable: Mapping[str, str]) -> tuple[str, str]:
        """Returns online, offline or disabled, as asked for here or in the environment, and why not online if it was.

        Online is only who is logged in.
        """
        import wandb

        asked = self.mode or environment_mode()
        if asked is None and unreadable.get("WANDB_MODE"):
            return "offline", unreadable["WANDB_MODE"]
        settings = wandb.Settings(silent=True)
        if self.mode in ("auto", "online"):
            settings.mode = "online"  # whatever the environment says
        told = _setup(settings).settings.mode  # `wandb offline` leaves it in a file
        asked = asked or {"online": "auto", "dryrun": "offline"}.get(told, told)
        if asked in ("offline", "disabled"):
            return asked, ""
        if unreadable.get("WANDB_BASE_URL"):
            return "offline", unreadable["WANDB_BASE_URL"]
        if wandb.login(prompt=False, verify=False):  # looks where wandb looks, without a connection
            return "online", ""
        return "offline", "nobody is logged in (`wandb login`)" if asked == "online" else ""

    def _init(self, info: RunInfo, mode: Literal["online", "offline"]) -> Any:
        import wandb

        _setup(wandb.Settings(silent=True))
        told = os.environ.get
        board = {"dataset_name": info.dataset, "method_name": info.group, "setting": info.setting}  # for dashboards
        folder = Path(self.dir or told("WANDB_DIR") or info.folder)
        folder.mkdir(parents=True, exist_ok=True)  # wandb would write into a temporary folder instead
        run = wandb.init(  # under a sweep's agent wandb takes entity, project and id from there instead
            entity=self.entity,
            project=self.project or told("WANDB_PROJECT") or "sslpl",
            id=info.id,
            name=info.name,
            group=self.group or told("WANDB_RUN_GROUP") or group_name(info),
            dir=str(folder),
            config={**info.config, **board, "config_id": info.config_id, "provenance": dict(info.provenance)},
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_settings(),
        )
        for names, axis in AXES.items():
            run.define_metric(axis, hidden=True)
            # Without step_sync: a row that does not say how much is labeled is not given an older number.
            run.define_metric(names, step_metric=axis, step_sync=False)
        return run

    def _send(self, run: Any, info: RunInfo) -> None:
        """Logs every row that the W&B run does not have yet, then ends it."""
        # Under a sweep's agent the W&B run has another id than the run.
        path = self._path = info.folder / "wandb" / f"history-{run.id}.json"
        history = self._before or History.read(path)
        self._before = history if run.offline else None
        # Where the last life stopped: the server knows of what it has, a file of what only lies here.
        last_step = max(history.offline, history.online if run.offline else run.step - 1)
        if run.offline:
            history = history.with_folder(Path(run.dir).parent, info.folder)
            history.write(path)
        if self._cut_off not in (
            None,
            Path(run.dir).parent,
        ):  # it lacks its last second: all of it is recorded again here
            shutil.rmtree(str(self._cut_off), ignore_errors=True)
        for item in self._items():
            if isinstance(item, _End):
                self._end(run, info, item)
                break
            metrics = _present(item.metrics)
            if item.step <= last_step or not metrics:
                continue
            last_step = item.step
            history = history.logged(last_step, bool(run.offline))
            history.write(path)  # before the row: a kill in between loses it, and does not double it
            run.log({**metrics, "global_step": item.step}, step=item.step, commit=True)
        if waiting := unsent(history, info.folder):
            print(f"W&B: recorded offline, to send it: {sync_command(waiting)}", flush=True)

    def _items(self) -> Iterator[_Row | _End]:
        """Yields what this life was told from its beginning, also when it is asked a second time."""
        yield from [*self._taken]
        while True:
            self._taken.append(self._queue.get())
            yield self._taken[-1]

    def _end(self, run: Any, info: RunInfo, end: _End) -> None:
        run.summary.update(_present(end.summary))
        try:
            _attach(run, info.id, end.files)
        except Exception as error:  # the final state counts for more than the file
            if _service_died(error):
                raise
            self._complain(_first_line(error))
        run.finish(exit_code=end.exit_code)

    def _lost(self, info: RunInfo) -> str:
        """Says which numbers W&B lacks after a failure, and how those that were recorded before can be sent."""
        if self._path is None:
            return "goes on without W&B"
        waiting = unsent(History.read(self._path), info.folder)
        return "the numbers since then did not arrive" + (
            f"; what was recorded before: {sync_command(waiting)}" if waiting else ""
        )

    def _complain(self, problem: str) -> None:
        """Says the first failure in one line, and nothing of those that follow from it."""
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        if not self._complained:
            _say(problem)
        self._complained = True


def _setup(settings: Any) -> Any:
    """Starts wandb's own process unless it runs; its hook at the exit, a traceback if it has died, comes to nothing."""
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
        disable_git=True,  # provenance says it
        init_timeout=INIT_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
        x_transaction_log_flush_interval=1,  # what a kill takes from an offline run,
        x_file_stream_transmit_interval=2,  # and from an online one, in seconds
    )


def group_name(info: RunInfo) -> str:
    """Returns the W&B group of a run: dataset, label and setting, so that its runs differ in the seed alone."""
    return f"{f'{info.dataset}/{info.group}'[: LONGEST_NAME - len(info.setting) - 1]}/{info.setting}"


def _say(problem: str) -> None:
    print(f"W&B: {problem}; the run's files are complete without it", file=sys.stderr, flush=True)


def _service_died(error: BaseException) -> bool:
    """Whether wandb's own process is no more."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "MailboxClosedError", "HandleAbandonedError"})


def _drop(run: Any) -> None:
    """Gives up a W&B run whose service has died; its threads would print a traceback when they next ask the service."""
    if run is not None:
        with suppress(Exception, SystemExit):
            run.finish()
    _close_service()


def _close_service() -> None:
    """Ends wandb's own process if it runs; nothing is raised or printed if it has died."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def _attach(run: Any, run_id: str, files: Sequence[Path]) -> None:
    import wandb

    if files:
        artifact = wandb.Artifact(f"queries-{run_id}", type="ledger")
        for file in files:  # immutable: sent from where it lies, without a copy in the home directory
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def _present(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that have a value."""
    return {name: value for name, value in metrics.items() if value is not None and not math.isnan(value)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def metric_names(row: Mapping[str, float | int | None]) -> dict[str, float]:
    """A row of metrics.csv under the names that a tracker shows: `test/accuracy` and so on."""
    return {re.sub("^(test|validation)_", r"\1/", key): value for key, value in row.items() if value is not None}
