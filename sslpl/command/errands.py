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

from sslpl.command.jobs import plan_of, preset
from sslpl.command.launch import finished_before, launch
from sslpl.command.mistakes import SIGNALLED, Mistake, Stopped, guarded
from sslpl.command.plans import Outcome, Place, Plan
from sslpl.command.sharing import gpu
from sslpl.recording.stopping import Interrupted, scheduler_signals
from sslpl.types import UserError

End = Outcome | Mistake
POLL_SECONDS = 0.5
SHARING = ("joblib", "submitit_local")  # launchers that leave it to their jobs which GPU to use


class Errand(NamedTuple):
    """What the processes of a sweep are told: the user's command, its process, the launcher, what stops all."""

    argv: tuple[str, ...]
    parent: int
    launcher: str
    flag: str


def work(errand: Errand, cfg: DictConfig) -> End:
    """Runs one composed config; what became of it, since nothing that is raised gets home whole."""
    sys.argv = list(errand.argv)  # what a run's provenance calls its command
    if errand.parent != os.getpid() and current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the file tells it
    try:
        return guarded(partial(run_here, errand, cfg))
    except Stopped as stop:
        signum = stop.mistake.code - SIGNALLED
        if signum in scheduler_signals():  # all is saved: now submitit may put the job back into the queue
            signal.raise_signal(signum)
        if errand.parent == os.getpid():
            raise
        return stop.mistake


def run_here(errand: Errand, cfg: DictConfig) -> End:
    """The end of a run in this process, which goes to where the command was given."""
    hydra_config = HydraConfig.get()
    try:
        os.chdir(hydra_config.runtime.cwd)
    except OSError as error:
        raise UserError(f"{hydra_config.runtime.cwd}: not there on {os.uname().nodename}; all must see it") from error
    with obeying(Path(errand.flag), errand.launcher):
        plan = plan_of(cfg, hydra_config, cache(preset))
        if isinstance(plan, Mistake):
            return plan
        return finished_before(plan) or placed(plan, errand.launcher)


def placed(plan: Plan, launcher: str) -> Outcome:
    """Runs a plan on a GPU that it has to itself, if the launcher gives it none; its lines begin with its name."""
    runtime, name = plan.config["runtime"], f"{plan.label}/{plan.folder.name}"
    chooses = launcher in SHARING and runtime["device"] in ("auto", "cuda") and not runtime["dry_run"]
    with gpu(torch.cuda.device_count() if chooses else 0, runtime["jobs_per_gpu"], name) as device:
        return launch(plan, place=Place(device, name))


@contextmanager
def obeying(flag: Path, launcher: str) -> Iterator[None]:
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
