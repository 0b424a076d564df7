"""Executes one run of a sweep in its own process: the task that Hydra's launchers pickle by name and call there."""

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
from sslpl.run.errors import SIGNAL_BASE, ErrorReport, SweepStopped, catch_errors
from sslpl.run.gpus import reserve_gpu
from sslpl.run.jobs import JobResult, job_plan, preset
from sslpl.run.launch import finished_outcome, launch
from sslpl.run.outcome import Outcome, Slot
from sslpl.types import UserError

POLL_SECONDS = 0.5
LOCAL_LAUNCHERS = ("joblib", "submitit_local")  # launchers whose jobs reserve a GPU themselves


class SweepCommand(NamedTuple):
    """The command of a sweep, as its worker processes receive it."""

    argv: tuple[str, ...]
    pid: int  # of the command's own process
    launcher: str
    stop_file: str  # its existence requests all runs to save and end


def run_sweep_job(sweep: SweepCommand, cfg: DictConfig) -> JobResult:
    """Runs one composed config; returns errors as reports, because not all exceptions can be pickled."""
    sys.argv = list(sweep.argv)  # recorded as the command in the run's provenance
    if sweep.pid != os.getpid() and current_thread() is main_thread():
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches all processes of a terminal; the stop file replaces it
    try:
        return catch_errors(partial(run_in_this_process, sweep, cfg))
    except SweepStopped as stop:
        signum = stop.report.code - SIGNAL_BASE
        if signum in scheduler_signals():  # everything is saved: submitit may requeue the job
            signal.raise_signal(signum)
        if sweep.pid == os.getpid():
            raise
        return stop.report


def run_in_this_process(sweep: SweepCommand, cfg: DictConfig) -> JobResult:
    """Runs one composed config in this process, in the folder in which the command was started."""
    hydra_config = HydraConfig.get()
    try:
        os.chdir(hydra_config.runtime.cwd)
    except OSError as error:
        raise UserError(
            f"{hydra_config.runtime.cwd}: does not exist on {os.uname().nodename}; all machines must see it"
        ) from error
    with stopping_on_request(Path(sweep.stop_file), sweep.launcher):
        plan = job_plan(cfg, hydra_config, cache(preset))
        if isinstance(plan, ErrorReport):
            return plan
        return finished_outcome(plan) or run_on_free_gpu(plan, sweep.launcher)


def run_on_free_gpu(plan: Plan, launcher: str) -> Outcome:
    """Runs a plan, on a reserved GPU if the launcher assigns none; the lines that it prints begin with its name."""
    runtime, name = plan.config["runtime"], f"{plan.method_name}/{plan.folder.name}"
    reserves = launcher in LOCAL_LAUNCHERS and runtime["device"] in ("auto", "cuda") and not runtime["dry_run"]
    with reserve_gpu(torch.cuda.device_count() if reserves else 0, runtime["jobs_per_gpu"], name) as device:
        return launch(plan, slot=Slot(device, name))


@contextmanager
def stopping_on_request(stop_file: Path, launcher: str) -> Iterator[None]:
    """Raises Interrupted as soon as the stop file exists; in a thread that is not the main one only at the start.

    A run on Slurm ends by SIGUSR2 only: after SIGTERM, which a preemption sends too, it would not be requeued.
    """

    def interrupted(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum)

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            if stop_file.exists():
                os.kill(os.getpid(), signal.SIGTERM)  # the recorder handles it
                return

    if stop_file.exists():
        raise Interrupted(signal.SIGTERM)
    if current_thread() is not main_thread():
        yield
        return
    done, poller = Event(), Thread(target=poll, name="stop-file", daemon=True)
    original = signal.signal(signal.SIGTERM, signal.SIG_IGN if launcher == "submitit_slurm" else interrupted)
    poller.start()
    try:
        yield
    finally:
        done.set()
        poller.join()
        signal.signal(signal.SIGTERM, original)
