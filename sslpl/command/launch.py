"""A checked config becomes a run: skipped if it is finished, waited for or taken over, resumed or begun."""

import csv
import json
import sys
from contextlib import ExitStack

from hydra.utils import instantiate

from sslpl import __version__, identity
from sslpl.build import build_setup
from sslpl.command.estimate import dry_run
from sslpl.command.execute import described, execute, follow
from sslpl.command.plans import HERE, Outcome, Place, Plan
from sslpl.command.search import in_sweep
from sslpl.distributed import led
from sslpl.processes import ALONE, World
from sslpl.recording import checkpoint, lock
from sslpl.recording.folder import changed_weights, check_folder, make_folder
from sslpl.recording.recorder import read_status, wandb_names
from sslpl.recording.terminal import Terminal
from sslpl.runtime import Runtime
from sslpl.types import Tracker, UserError


def launch(plan: Plan, wait: bool = False, place: Place = HERE) -> Outcome:
    """Runs what a plan describes, or goes on with it; "elsewhere" while another process does, unless it is to wait."""
    world = place.world
    check_same(plan, world)
    if (outcome := led(world, lambda: finished_before(plan))) is not None:
        return outcome
    given = {} if place.device is None else {"device": place.device}
    runtime: Runtime = instantiate(plan.config["runtime"], **given)
    if runtime.dry_run and not world.leads:  # a single process is reckoned with
        return Outcome("reckoned")
    setup = build_setup(plan.config, runtime, plan.folder, ALONE if runtime.dry_run else world)
    runtime.set_threads(setup.dataset.train.shape, setup.world)
    if runtime.dry_run:
        dry_run(setup, Terminal(), plan.folder)
        return Outcome("reckoned")
    led(world, lambda: open_place(plan))
    with ExitStack() as stack:
        if not led(world, lambda: stack.enter_context(lock.owned(plan.folder, wait))):
            return Outcome("elsewhere")
        outcome = led(world, lambda: finished_before(plan))
        if outcome is None:
            outcome = execute(plan, setup, runtime, place.name) if world.leads else follow(plan, setup)
    if outcome.note:
        print(outcome.note, flush=True)
    return outcome


def open_place(plan: Plan) -> None:
    """Makes a run's folder, and says so if a file of weights was another one in an earlier run of the same command."""
    if (line := changed_weights(plan.folder, plan.config)) is not None:
        print(f"sslpl: {line}", file=sys.stderr, flush=True)
    make_folder(plan.folder, plan.config["runtime"]["output_dir"])


def check_same(plan: Plan, world: World) -> None:
    """UserError in a process that would compute another run than the first one, with other files or another version."""
    own = identity.run_id(plan.config), __version__
    theirs = led(world, lambda: own)
    if own != theirs:
        first = " of version ".join(theirs)
        raise UserError(f"run {own[0]} of version {own[1]}: must be that of the first process, {first}")


def finished_before(plan: Plan) -> Outcome | None:
    """The outcome of a run that is finished already; UserError if its folder holds another run."""
    if not plan.folder.exists():
        return None
    check_folder(plan.folder, plan.config)
    status = read_status(plan.folder)
    if status.get("state") != "finished":
        return None
    checkpoint.discard(plan.folder / "checkpoint")  # a kill may have come just before
    lock.forget(plan.folder)
    print(f"finished already: {plan.folder}", flush=True)
    if in_sweep():
        retell(plan, float(status["aubc"]))
    return Outcome("skipped", float(status["aubc"]))


def retell(plan: Plan, area: float) -> None:
    """Sends what a finished run gave to the W&B run that an agent opened for its config, which else ends empty."""
    tracker: Tracker = instantiate(plan.config["tracker"])
    tracker.start(described(plan, json.loads((plan.folder / "provenance.json").read_text())))
    accuracy = 0.0
    with (plan.folder / "metrics.csv").open(newline="") as file:
        for step, row in enumerate(csv.DictReader(file)):
            tracker.log(step, wandb_names({key: float(value) for key, value in row.items() if value}))
            accuracy = float(row["test_accuracy"])
    tracker.finish(0, {"aubc": area, "final_accuracy": accuracy}, [plan.folder / "queries.csv"])
