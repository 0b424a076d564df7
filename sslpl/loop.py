"""The active-learning loop: read this file first."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from sslpl.memory import peak_memory_mib
from sslpl.phases.ensemble import train_ensemble
from sslpl.phases.evaluate import evaluate
from sslpl.phases.finetune import finetune
from sslpl.phases.label import exclude_random, label, label_initial_pool, record_labels
from sslpl.phases.query import initial_selection, query
from sslpl.phases.stop import stop_reason
from sslpl.phases.train import train
from sslpl.pool import LabelPool
from sslpl.schedule import FINISHED, TRAINING_PHASES
from sslpl.setup import Setup
from sslpl.state import Ledger, Row, State, weights_of
from sslpl.types import UNLABELED, Step


class Observer(Protocol):
    """Receives the events of a run, to display, log or checkpoint it."""

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Called when a phase starts or resumes."""
        ...

    def on_step(self, state: State, step: Step) -> None:
        """Called after each step of a phase; `state` can be saved."""
        ...

    def on_phase_end(self, state: State) -> None:
        """Called after a phase, when `state` has advanced to the next phase, perhaps of the next cycle."""
        ...


def run_active_learning(setup: Setup, state: State, observer: Observer) -> State:
    """Runs the remaining phases of all cycles, from the phase, epoch and step of `state`; returns the final state."""
    while state.phase != FINISHED:
        setup = setup.with_class_names(state.class_names)
        observer.on_phase_start(setup, state)
        phase, step_start = state.phase, time.perf_counter()
        for step in PHASES[phase](setup, state):
            now = time.perf_counter()
            state.seconds[phase] = state.seconds.get(phase, 0.0) + now - step_start - step.waited
            state.images += step.images if phase in TRAINING_PHASES else 0
            observer.on_step(state, step)
            setup.turns.pass_on()
            step_start = time.perf_counter()
        state.seconds[phase] = state.seconds.get(phase, 0.0) + time.perf_counter() - step_start
        advance(setup.with_class_names(state.class_names), state)
        observer.on_phase_end(state)
    return state


def initial_state(setup: Setup) -> State:
    """Returns the state at the start of a run: new networks and the initial labeled pool.

    If some initial images have no label yet, the run starts with the phase `start`, which asks the oracle for them.
    With trimming, random labeled images are excluded from the first joint training.
    """
    state = empty_state(setup)
    if setup.needs.previous:
        state.previous_weights = weights_of(state.backbone)
    selection = initial_selection(setup, state)
    labels = setup.dataset.train_labels[selection.index]
    if bool((labels == UNLABELED).any()):
        state.selection, state.phase = selection, "start"
    else:
        record_labels(setup, state, selection, labels, cycle=0)
        exclude_random(setup, state)
    return state


def empty_state(setup: Setup) -> State:
    """Returns a state with new networks and no labeled image, into which a checkpoint can be loaded."""
    empty = torch.empty(0, dtype=torch.int64)
    ledger = Ledger(empty, empty, empty, empty.double())
    pool = LabelPool(len(setup.dataset.train), empty)
    return State(pool, ledger, empty, *setup.build(0), class_names=setup.dataset.class_names)


def advance(setup: Setup, state: State) -> None:
    """Moves `state` from a finished phase to the next one, of the next cycle after the last phase of a cycle."""
    schedule = setup.schedule(state.module is not None)
    next_phase = schedule.phase_after(state.phase, state.cycle)
    reason = stop_reason(setup, state) if state.phase == "evaluate" and next_phase is not None else None
    if next_phase is not None and reason is None:
        state.enter(next_phase)
        return
    if reason is not None and setup.world.is_rank_zero:
        setup.announce(f"stops: {reason}")
    is_last_cycle = reason is not None or schedule.is_last(state.cycle)
    close_cycle(state)
    state.enter(FINISHED if is_last_cycle else "train")
    state.previous_weights = weights_of(state.backbone) if setup.needs.previous else None
    state.snapshots = []
    if not is_last_cycle:
        prepare_training(setup, state)


def prepare_training(setup: Setup, state: State) -> None:
    """Builds new networks for the next joint training or, with `warm_start`, restores the unaveraged weights."""
    if not setup.training.warm_start:
        state.backbone, state.module = setup.build(state.cycle)
    elif state.unaveraged_weights is not None:
        state.backbone.load_state_dict(state.unaveraged_weights)
    state.unaveraged_weights = None


def close_cycle(state: State) -> None:
    """Appends the metrics of the finished cycle to the history and resets them for the next cycle."""
    state.history.append(cycle_row(state))
    state.row, state.seconds, state.images = {}, {}, 0
    state.cycle += 1


def cycle_row(state: State) -> Row:
    """Returns the metrics of the current cycle so far, with durations, throughput and peak memory."""
    seconds = state.seconds
    train_seconds = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
    return state.row | {
        "train_seconds": train_seconds,
        "finetune_seconds": seconds.get("finetune"),
        "evaluate_seconds": seconds.get("evaluate"),
        "query_seconds": seconds["query"] + seconds.get("label", 0.0) if "query" in seconds else None,
        "train_images_per_second": state.images / train_seconds,
        "peak_memory_mib": peak_memory_mib(next(state.backbone.parameters()).device),
    }


PHASES: dict[str, Callable[[Setup, State], Iterator[Step]]] = {
    "start": label_initial_pool,
    "train": train,
    "ensemble": train_ensemble,
    "finetune": finetune,
    "evaluate": evaluate,
    "query": query,
    "label": label,
}
