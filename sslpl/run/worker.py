"""A run of a sweep in a process of its own: what Hydra's launchers send away, by name, and call there."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sslpl.config.plans import Plan
from sslpl.recording.signals import Interrupted, scheduler_signals
from sslpl.run.errors import SIGNALLED, ErrorReport, SweepStopped, catch_errors
from sslpl.run.gpus import reserve_gpu
from sslpl.run.jobs import job_plan, preset
from sslpl.run.launch import finished_outcome, launch
from sslpl.run.outcome import Outcome, Slot
from sslpl.types import UserError

JobEnd = Outcome | ErrorReport
POLL_SECONDS = 0.5
LOCAL_LAUNCHERS = ("joblib", "submitit_local")  # launchers that leave it to their jobs which GPU to use


class SweepCommand(NamedTuple):
    """What the processes of a sweep are told: the user's command, its process, the launcher, what stops all."""

    argv: tuple[str, ...]
    parent: int
    launcher: str
    flag: str


def run_sweep_job(errand: SweepCommand, cfg: DictConfig) -> JobEnd:
    """Runs one composed config; what became of it, since nothing that is raised gets home whole."""
    sys.argv = list(errand.argv)  # what a run's provenance calls its command
    if errand.parent != os.getpid() and current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the file tells it
    try:
        return catch_errors(partial(run_in_this_process, errand, cfg))
    except SweepStopped as stop:
        signum = stop.mistake.code - SIGNALLED
        if signum in scheduler_signals():  # all is saved: now submitit may put the job back into the queue
            signal.raise_signal(signum)
        if errand.parent == os.getpid():
            raise
        return stop.mistake


def run_in_this_process(errand: SweepCommand, cfg: DictConfig) -> JobEnd:
    """The end of a run in this process, which goes to where the command was given."""
    hydra_config = HydraConfig.get()
    try:
        os.chdir(hydra_config.runtime.cwd)
    except OSError as error:
        raise UserError(f"{hydra_config.runtime.cwd}: not there on {os.uname().nodename}; all must see it") from error
    with stopping_on_request(Path(errand.flag), errand.launcher):
        plan = job_plan(cfg, hydra_config, cache(preset))
        if isinstance(plan, ErrorReport):
            return plan
        return finished_outcome(plan) or run_on_free_gpu(plan, errand.launcher)


def run_on_free_gpu(plan: Plan, launcher: str) -> Outcome:
    """Runs a plan on a GPU that it has to itself, if the launcher gives it none; its lines begin with its name."""
    runtime, name = plan.config["runtime"], f"{plan.method_name}/{plan.folder.name}"
    chooses = launcher in LOCAL_LAUNCHERS and runtime["device"] in ("auto", "cuda") and not runtime["dry_run"]
    with reserve_gpu(torch.cuda.device_count() if chooses else 0, runtime["jobs_per_gpu"], name) as device:
        return launch(plan, slot=Slot(device, name))


@contextmanager
def stopping_on_request(flag: Path, launcher: str) -> Iterator[None]:
    """Interrupted as soon as the sweep's command asks for it by a file; in a thread only at the beginning.

    A run of Slurm ends by SIGUSR2 alone: after SIGTERM, which a preemption sends too, it would not be queued again.
    """

    def interrupted(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum)

    def look() -> None:
        while not over.wait(POLL_SECONDS):
            if flag.exists():
                os.kill(os.getpid(), signal.SIGTERM)  # the recorder listens to it
                return

    if flag.exists():
        raise Interrupted(signal.SIGTERM)
    if current_thread() is not main_thread():
        yield
        return
    over, watch = Event(), Thread(target=look, name="stop-flag", daemon=True)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN if launcher == "submitit_slurm" else interrupted)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        signal.signal(signal.SIGTERM, before)
