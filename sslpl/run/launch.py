"""Launches the run of a plan: skips a finished one, resumes or starts any other, one process at a time."""

import csv
import json
from contextlib import ExitStack

from hydra.utils import instantiate

from sslpl import __version__
from sslpl.config import identity
from sslpl.config.build import build_setup
from sslpl.config.plans import Plan
from sslpl.distributed.collectives import on_rank_zero
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.messages import print_notice
from sslpl.recording import checkpoint, lock
from sslpl.recording.folder import changed_weights, check_folder, make_folder
from sslpl.recording.status import read_status
from sslpl.recording.terminal import Terminal
from sslpl.run.estimate import dry_run
from sslpl.run.execute import execute, follow, run_info
from sslpl.run.outcome import THIS_PROCESS, Outcome, Slot
from sslpl.run.search import in_wandb_sweep
from sslpl.runtime import Runtime
from sslpl.tracking.trackers import metric_names
from sslpl.types import Tracker, UserError


def launch(plan: Plan, wait: bool = False, slot: Slot = THIS_PROCESS) -> Outcome:
    """Starts or resumes the run of a plan; while another process holds it, waits or returns the outcome "running"."""
    world = slot.world
    check_same_run(plan, world)
    if (outcome := on_rank_zero(world, lambda: finished_outcome(plan))) is not None:
        return outcome
    overrides = {} if slot.device is None else {"device": slot.device}
    runtime: Runtime = instantiate(plan.config["runtime"], **overrides)
    if runtime.dry_run and not world.is_rank_zero:  # the estimate is for a single process
        return Outcome("estimated")
    setup = build_setup(plan.config, runtime, plan.folder, SINGLE_PROCESS if runtime.dry_run else world)
    runtime.set_threads(setup.dataset.train.shape, setup.world)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("estimated")
    on_rank_zero(world, lambda: create_folder(plan))
    with ExitStack() as stack:
        if not on_rank_zero(world, lambda: stack.enter_context(lock.run_lock(plan.folder, wait))):
            return Outcome("running")
        outcome = on_rank_zero(world, lambda: finished_outcome(plan))
        if outcome is None:
            outcome = execute(plan, setup, runtime, slot) if world.is_rank_zero else follow(plan, setup)
    if outcome.note:
        print(outcome.note, flush=True)
    return outcome


def create_folder(plan: Plan) -> None:
    """Creates a run's folder; prints a line if the content of its file of weights has changed since an earlier run."""
    if (line := changed_weights(plan.folder, plan.config)) is not None:
        print_notice(line)
    make_folder(plan.folder, plan.config["runtime"]["output_dir"])


def check_same_run(plan: Plan, world: World) -> None:
    """Raises a UserError in a process whose files or version make its run another one than that of rank 0."""
    own = identity.run_id(plan.config), __version__
    expected = on_rank_zero(world, lambda: own)
    if own != expected:
        first = " of version ".join(expected)
        raise UserError(f"run {own[0]} of version {own[1]}: must be that of the first process, {first}")


def finished_outcome(plan: Plan) -> Outcome | None:
    """Returns the outcome of a finished run, None for any other; UserError if its folder holds another run."""
    if not plan.folder.exists():
        return None
    check_folder(plan.folder, plan.config)
    status = read_status(plan.folder)
    if status.get("state") != "finished":
        return None
    checkpoint.discard(plan.folder / "checkpoint")  # the process may have been killed just before this
    lock.remove_lock(plan.folder)
    print(f"finished already: {plan.folder}", flush=True)
    if in_wandb_sweep():
        resend_to_tracker(plan, float(status["aubc"]))
    return Outcome("skipped", float(status["aubc"]))


def resend_to_tracker(plan: Plan, area: float) -> None:
    """Sends the metrics of a finished run to the W&B run that an agent opened for it, which would stay empty."""
    tracker: Tracker = instantiate(plan.config["tracker"])
    tracker.start(run_info(plan, json.loads((plan.folder / "provenance.json").read_text())))
    accuracy = 0.0
    with (plan.folder / "metrics.csv").open(newline="") as file:
        for step, row in enumerate(csv.DictReader(file)):
            tracker.log(step, metric_names({key: float(value) for key, value in row.items() if value}))
            accuracy = float(row["test_accuracy"])
    tracker.finish(0, {"aubc": area, "final_accuracy": accuracy}, [plan.folder / "queries.csv"])
