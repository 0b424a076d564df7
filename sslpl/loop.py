"""The active-learning loop: read this file first."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from sslpl.memory import peak_memory_mib
from sslpl.phases.evaluate import evaluate
from sslpl.phases.finetune import finetune
from sslpl.phases.label import add_labels, exclude_random, label, label_initial_pool
from sslpl.phases.query import initial_selection, query
from sslpl.phases.train import train
from sslpl.pool import LabelPool
from sslpl.schedule import FINISHED
from sslpl.setup import Setup
from sslpl.state import Ledger, Row, State, weights_of
from sslpl.types import Step


class Observer(Protocol):
    """Watches a run: shows it, streams it, saves it."""

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """A phase begins or goes on."""
        ...

    def on_step(self, state: State, step: Step) -> None:
        """A step of a phase is done; `state` can be saved."""
        ...

    def on_phase_end(self, state: State) -> None:
        """A phase is done, and perhaps a cycle; `state` stands at what comes next."""
        ...


def run_active_learning(setup: Setup, state: State, observer: Observer) -> State:
    """Trains, fine-tunes, evaluates, queries and labels, cycle after cycle, from wherever `state` stands."""
    while state.phase != FINISHED:
        setup = setup.with_class_names(state.class_names)
        observer.on_phase_start(setup, state)
        phase, since = state.phase, time.perf_counter()
        for step in PHASES[phase](setup, state):
            now = time.perf_counter()
            state.seconds[phase] = state.seconds.get(phase, 0.0) + now - since
            state.images += step.images if phase == "train" else 0
            observer.on_step(state, step)
            since = time.perf_counter()
        state.seconds[phase] = state.seconds.get(phase, 0.0) + time.perf_counter() - since
        advance(setup.with_class_names(state.class_names), state)
        observer.on_phase_end(state)
    return state


def initial_state(setup: Setup) -> State:
    """Fresh networks and the first labeled images, or, where nobody has labeled any, those to ask for.

    With trimming, some of the labeled ones sit out the first training.
    """
    state = empty_state(setup)
    if setup.needs.previous:
        state.previous_weights = weights_of(state.backbone)
    first = initial_selection(setup, state)
    labels = setup.dataset.train_labels[first.index]
    if bool((labels < 0).any()):
        state.selection, state.phase = first, "start"
    else:
        add_labels(setup, state, first, labels, cycle=0)
        exclude_random(setup, state)
    return state


def empty_state(setup: Setup) -> State:
    """Fresh networks and no labeled image: what a checkpoint is loaded into."""
    nothing, classes = torch.empty(0, dtype=torch.int64), setup.dataset.class_names
    ledger = Ledger(nothing, nothing, nothing, nothing.double())
    pool = LabelPool(len(setup.dataset.train), nothing)
    return State(pool, ledger, nothing, *setup.build(0), class_names=classes)


def advance(setup: Setup, state: State) -> None:
    """Moves `state` from a finished phase to the next one, at the end of a cycle to the next cycle."""
    schedule = setup.schedule(state.module is not None)
    following = schedule.phase_after(state.phase, state.cycle)
    if following is not None:
        state.enter(following)
        return
    last = schedule.is_last(state.cycle)
    close_cycle(state)
    state.enter(FINISHED if last else "train")
    state.previous_weights = weights_of(state.backbone) if setup.needs.previous else None
    state.snapshots = []
    if not last:
        prepare_training(setup, state)


def prepare_training(setup: Setup, state: State) -> None:
    """Fresh networks, or those of the cycle before as its joint training left them."""
    if not setup.training.warm_start:
        state.backbone, state.module = setup.build(state.cycle)
    elif state.unaveraged_weights is not None:
        state.backbone.load_state_dict(state.unaveraged_weights)
    state.unaveraged_weights = None


def close_cycle(state: State) -> None:
    """Files the numbers of the finished cycle and starts the next one's with none."""
    state.history.append(cycle_row(state))
    state.row, state.seconds, state.images = {}, {}, 0
    state.cycle += 1


def cycle_row(state: State) -> Row:
    """The numbers of the cycle under way, as far as it is."""
    seconds = state.seconds
    return state.row | {
        "train_seconds": seconds.get("train"),
        "finetune_seconds": seconds.get("finetune"),
        "evaluate_seconds": seconds.get("evaluate"),
        "query_seconds": seconds["query"] + seconds.get("label", 0.0) if "query" in seconds else None,
        "train_images_per_second": state.images / seconds["train"],
        "peak_memory_mib": peak_memory_mib(next(state.backbone.parameters()).device),
    }


PHASES: dict[str, Callable[[Setup, State], Iterator[Step]]] = {
    "start": label_initial_pool,
    "train": train,
    "finetune": finetune,
    "evaluate": evaluate,
    "query": query,
    "label": label,
}
