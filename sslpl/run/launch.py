"""A checked config becomes a run: skipped if it is finished, waited for or taken over, resumed or begun."""

import csv
import json
import sys
from contextlib import ExitStack

from hydra.utils import instantiate

from sslpl import __version__
from sslpl.config import identity
from sslpl.config.build import build_setup
from sslpl.config.plans import Plan
from sslpl.distributed.collectives import on_rank_zero
from sslpl.distributed.world import SINGLE_PROCESS, World
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
    """Runs what a plan describes, or goes on with it; "elsewhere" while another process does, unless it is to wait."""
    world = slot.world
    check_same_run(plan, world)
    if (outcome := on_rank_zero(world, lambda: finished_outcome(plan))) is not None:
        return outcome
    given = {} if slot.device is None else {"device": slot.device}
    runtime: Runtime = instantiate(plan.config["runtime"], **given)
    if runtime.dry_run and not world.is_rank_zero:  # a single process is reckoned with
        return Outcome("reckoned")
    setup = build_setup(plan.config, runtime, plan.folder, SINGLE_PROCESS if runtime.dry_run else world)
    runtime.set_threads(setup.dataset.train.shape, setup.world)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("reckoned")
    on_rank_zero(world, lambda: open_place(plan))
    with ExitStack() as stack:
        if not on_rank_zero(world, lambda: stack.enter_context(lock.run_lock(plan.folder, wait))):
            return Outcome("elsewhere")
        outcome = on_rank_zero(world, lambda: finished_outcome(plan))
        if outcome is None:
            outcome = execute(plan, setup, runtime, slot.name) if world.is_rank_zero else follow(plan, setup)
    if outcome.note:
        print(outcome.note, flush=True)
    return outcome


def open_place(plan: Plan) -> None:
    """Makes a run's folder, and says so if a file of weights was another one in an earlier run of the same command."""
    if (line := changed_weights(plan.folder, plan.config)) is not None:
        print(f"sslpl: {line}", file=sys.stderr, flush=True)
    make_folder(plan.folder, plan.config["runtime"]["output_dir"])


def check_same_run(plan: Plan, world: World) -> None:
    """UserError in a process that would compute another run than the first one, with other files or another version."""
    own = identity.run_id(plan.config), __version__
    theirs = on_rank_zero(world, lambda: own)
    if own != theirs:
        first = " of version ".join(theirs)
        raise UserError(f"run {own[0]} of version {own[1]}: must be that of the first process, {first}")


def finished_outcome(plan: Plan) -> Outcome | None:
    """The outcome of a run that is finished already; UserError if its folder holds another run."""
    if not plan.folder.exists():
        return None
    check_folder(plan.folder, plan.config)
    status = read_status(plan.folder)
    if status.get("state") != "finished":
        return None
    checkpoint.discard(plan.folder / "checkpoint")  # a kill may have come just before
    lock.remove_lock(plan.folder)
    print(f"finished already: {plan.folder}", flush=True)
    if in_wandb_sweep():
        resend_to_tracker(plan, float(status["aubc"]))
    return Outcome("skipped", float(status["aubc"]))


def resend_to_tracker(plan: Plan, area: float) -> None:
    """Sends what a finished run gave to the W&B run that an agent opened for its config, which else ends empty."""
    tracker: Tracker = instantiate(plan.config["tracker"])
    tracker.start(run_info(plan, json.loads((plan.folder / "provenance.json").read_text())))
    accuracy = 0.0
    with (plan.folder / "metrics.csv").open(newline="") as file:
        for step, row in enumerate(csv.DictReader(file)):
            tracker.log(step, metric_names({key: float(value) for key, value in row.items() if value}))
            accuracy = float(row["test_accuracy"])
    tracker.finish(0, {"aubc": area, "final_accuracy": accuracy}, [plan.folder / "queries.csv"])
