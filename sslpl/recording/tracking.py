"""Where a run's numbers go besides its own folder: nowhere, or to Weights & Biases."""

import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Literal, NamedTuple

from sslpl.types import RunInfo

Mode = Literal["auto", "online", "offline"]

INIT_SECONDS = 10  # an unreachable server is given up after this; the run goes on meanwhile
UPLOAD_SECONDS = 15  # what W&B may take to upload the rest when a run ends
FINISH_SECONDS = 20  # what a run waits for its tracker at most
FAILING_SECONDS = 10  # the same after W&B has failed once
AXES = {"*": "labeled", "train/*": "global_step", "finetune/*": "global_step"}


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
    """Sends a run to Weights & Biases from a thread of its own: no failure or delay reaches the run."""

    def __init__(self, mode: Mode = "auto", project: str = "sslpl", entity: str | None = None) -> None:
        self.mode, self.project, self.entity = mode, project, entity
        self._queue: SimpleQueue[tuple[int, Mapping[str, float]] | _End] = SimpleQueue()
        self._failed = Event()
        self._thread: Thread | None = None

    def start(self, run: RunInfo) -> None:
        """Opens the W&B run of `run.id`, or that of the sweep whose agent started this process, or continues it."""
        self._queue, self._failed = SimpleQueue(), Event()
        self._thread = Thread(target=self._work, args=(run,), name="wandb-tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one row: its step must be above all before it, or the row is dropped as a repeat."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put((step, dict(metrics)))

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Sets the final state, attaches the files and waits a bounded time for the upload."""
        if self._thread is None:
            return
        self._queue.put(_End(exit_code, dict(summary), tuple(files)))
        began = time.monotonic()
        while self._thread.is_alive():
            limit = FAILING_SECONDS if self._failed.is_set() else FINISH_SECONDS
            if time.monotonic() - began > limit:
                self._complain(f"not everything was sent within {limit} s")
                break
            self._thread.join(timeout=0.1)

    def _work(self, info: RunInfo) -> None:
        try:
            if (run := self._open(info)) is not None:
                self._send(run, info)
        except (Exception, SystemExit) as error:  # whatever happens inside wandb, the run goes on
            self._complain(_first_line(error))

    def _open(self, info: RunInfo) -> Any:
        # wandb's reports on its own errors delay the exit of the process when its server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        logging.getLogger("wandb").propagate = False  # it has a file of its own
        import wandb

        run = None
        try:
            if (mode := self._choose_mode()) == "disabled":
                return None
            if mode == "online":
                run = self._init(info, "online")
        except Exception as error:
            self._complain(f"{_first_line(error)}; goes on offline")
            wandb.teardown()  # its service would hold on to the id of a run that failed to open
        run = run or self._init(info, "offline")
        where = f"offline, to send it: wandb sync {Path(run.dir).parent}" if run.offline else run.url
        print(f"W&B: {where}", flush=True)
        return run

    def _choose_mode(self) -> Literal["online", "offline", "disabled"]:
        """What was asked for here, else by WANDB_MODE, and online only for who is logged in."""
        import wandb

        settings = wandb.Settings(silent=True)
        if self.mode == "online":
            settings.mode = "online"
        users_mode = wandb.setup(settings).settings.mode
        if self.mode == "offline" or users_mode in ("offline", "dryrun"):
            return "offline"
        if users_mode == "disabled":
            return "disabled"
        if wandb.login(prompt=False, verify=False):  # looks where wandb looks, without a connection
            return "online"
        if self.mode == "online" or "WANDB_MODE" in os.environ:
            self._complain("nobody is logged in (`wandb login`); goes on offline")
        return "offline"

    def _init(self, info: RunInfo, mode: Literal["online", "offline"]) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.Settings(
            silent=True,
            console="off",  # the terminal belongs to the run
            disable_git=True,  # provenance says it
            init_timeout=INIT_SECONDS,
            finish_timeout=UPLOAD_SECONDS,
            x_transaction_log_flush_interval=1,  # what a kill takes from an offline run,
            x_file_stream_transmit_interval=2,  # and from an online one, in seconds
        )
        board = {"dataset_name": info.dataset, "setting": info.setting}  # beside the group, for dashboards
        run = wandb.init(  # under a sweep's agent wandb takes entity, project and id from there instead
            entity=self.entity,
            project=self.project,
            id=info.id,
            name=info.name,
            group=info.group,
            dir=str(info.folder),
            config={**info.config, **board, "provenance": dict(info.provenance)},
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        for names, axis in AXES.items():
            run.define_metric(axis, hidden=True)
            # Without step_sync: a row that does not say how much is labeled is not given an older number.
            run.define_metric(names, step_metric=axis, step_sync=False)
        return run

    def _send(self, run: Any, info: RunInfo) -> None:
        # Where the last life stopped: the server knows of what it has, a file of what only lies here.
        marker = info.folder / "wandb" / ("last-offline-step" + ("" if run.id == info.id else f"-{run.id}"))
        last_step = max(int(marker.read_text()) if marker.exists() else -1, run.step - 1)
        while not isinstance(item := self._queue.get(), _End):
            step, metrics = item[0], _present(item[1])
            if step <= last_step or not metrics:
                continue
            last_step = step
            if run.offline:  # before the row: a kill in between loses it, and does not double it
                _write_step(marker, step)
            run.log({**metrics, "global_step": step}, step=step, commit=True)
        run.summary.update(_present(item.summary))
        try:
            _attach(run, info.id, item.files)
        except Exception as error:  # the final state counts for more than the file
            self._complain(_first_line(error))
        run.finish(exit_code=item.exit_code)

    def _complain(self, problem: str) -> None:
        """Says the first failure in one line, and nothing of those that follow from it."""
        if not self._failed.is_set():
            self._failed.set()
            print(f"W&B: {problem}; the run's files are complete without it", file=sys.stderr, flush=True)


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


def _write_step(marker: Path, step: int) -> None:
    draft = marker.with_suffix(".draft")
    draft.write_text(str(step))
    draft.replace(marker)
