"""The active-learning loop: read this file first."""

import resource
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from sslpl.labeling import enroll, exclude_some, label, start
from sslpl.learn.evaluation import loss_rank_correlation, predict, test_metrics
from sslpl.learn.finetune import finetune
from sslpl.learn.joint import train
from sslpl.pool import LabelPool
from sslpl.querying import first_picked, query
from sslpl.setup import Setup, Step
from sslpl.state import FINISHED, Ledger, Row, State, weights_of


class Observer(Protocol):
    """Watches a run: shows it, streams it, saves it."""

    def phase(self, setup: Setup, state: State) -> None:
        """A phase begins or goes on."""
        ...

    def step(self, state: State, step: Step) -> None:
        """A step of a phase is done; `state` can be saved."""
        ...

    def border(self, state: State) -> None:
        """A phase is done, and perhaps a cycle; `state` stands at what comes next."""
        ...


def run_active_learning(setup: Setup, state: State, observer: Observer) -> State:
    """Trains, fine-tunes, evaluates, queries and labels, cycle after cycle, from wherever `state` stands."""
    while state.phase != FINISHED:
        setup = setup.knowing(state.class_names)
        observer.phase(setup, state)
        phase, since = state.phase, time.perf_counter()
        for step in PHASES[phase](setup, state):
            now = time.perf_counter()
            state.seconds[phase] = state.seconds.get(phase, 0.0) + now - since
            state.images += step.images if phase == "train" else 0
            observer.step(state, step)
            since = time.perf_counter()
        state.seconds[phase] = state.seconds.get(phase, 0.0) + time.perf_counter() - since
        proceed(setup.knowing(state.class_names), state)
        observer.border(state)
    return state


def initial_state(setup: Setup) -> State:
    """Fresh networks and the first labeled images, or, where nobody has labeled any, those to ask for.

    With trimming, some of the labeled ones sit out the first training.
    """
    state = empty_state(setup)
    if setup.needs.previous:
        state.earlier = weights_of(state.backbone)
    first = first_picked(setup, state)
    labels = setup.dataset.train_labels[first.index]
    if bool((labels < 0).any()):
        state.picked, state.phase = first, "start"
    else:
        enroll(setup, state, first, labels, cycle=0)
        exclude_some(setup, state)
    return state


def empty_state(setup: Setup) -> State:
    """Fresh networks and no labeled image: what a checkpoint is loaded into."""
    nothing, classes = torch.empty(0, dtype=torch.int64), setup.dataset.class_names
    ledger = Ledger(nothing, nothing, nothing, nothing.double())
    pool = LabelPool(len(setup.dataset.train), nothing)
    return State(pool, ledger, nothing, *setup.build(0), class_names=classes)


def proceed(setup: Setup, state: State) -> None:
    """Moves `state` from a finished phase to the next one, at the end of a cycle to the next cycle."""
    last = state.cycle == setup.budget.cycles - 1
    if state.phase == "start":
        state.enter("train")
    elif state.phase == "train":
        skip = state.module is None or setup.training.finetune_epochs == 0
        state.enter("evaluate" if skip or (last and not setup.training.finetune_last) else "finetune")
    elif state.phase == "finetune":
        state.enter("evaluate")
    elif state.phase == "evaluate" and not last:
        state.enter("query")
    elif state.phase == "query":
        state.enter("label")
    else:
        close_cycle(state)
        state.enter(FINISHED if last else "train")
        state.earlier = weights_of(state.backbone) if setup.needs.previous else None
        state.snapshots = []
        if not last:
            begin_training(setup, state)


def begin_training(setup: Setup, state: State) -> None:
    """Fresh networks, or those of the cycle before as its joint training left them."""
    if not setup.training.warm_start:
        state.backbone, state.module = setup.build(state.cycle)
    elif state.raw is not None:
        state.backbone.load_state_dict(state.raw)
    state.raw = None


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


def evaluate(setup: Setup, state: State) -> Iterator[Step]:
    """Tests the backbone, and whether the module's predicted losses order the unlabeled images."""
    data, networks = setup.dataset, (state.backbone, state.module)
    state.row.update(cycle=state.cycle, labeled=len(state.pool.labeled))
    test = predict(setup, *networks, data.test, torch.arange(len(data.test)))
    state.row.update(test_metrics(test, data.test_labels))
    yield Step(len(data.test))
    if state.module is not None:
        unlabeled = state.predictions = predict(setup, *networks, data.train, state.pool.unlabeled)
        state.row["loss_rank_correlation"] = loss_rank_correlation(unlabeled, setup.true_labels[unlabeled.index])
        yield Step(len(unlabeled.index))


PHASES: dict[str, Callable[[Setup, State], Iterator[Step]]] = {
    "start": start,
    "train": train,
    "finetune": finetune,
    "evaluate": evaluate,
    "query": query,
    "label": label,
}


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far: of the device on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
