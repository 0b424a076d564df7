"""The label phase: queries the oracle, records the labels and chooses the images excluded from the next training."""

import time
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from sslpl.distributed.collectives import on_rank_zero
from sslpl.learn.inference import predict, predict_shard
from sslpl.learn.metrics import true_losses
from sslpl.models.backbone import grow_head
from sslpl.oracle.label_request import strategy_name
from sslpl.phases.corrections import correct_labels
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup
from sslpl.state import LabelBatch, Ledger, State, weights_of
from sslpl.trimming import trim_size, trimmed_positions
from sslpl.types import REJECTED, LabelAnswer, LabelRequest, Selection, Step, UserError


def label_initial_pool(setup: Setup, state: State) -> Iterator[Step]:
    """Asks the oracle for the labels of the initial pool."""
    answer = yield from ask_oracle(setup, state, cycle=0)
    record_answer(setup, state, answer, cycle=0)
    exclude_random(setup, state)
    if setup.needs.previous:  # new classes may have enlarged the head
        state.previous_weights = weights_of(state.backbone)
    yield Step(len(state.pool.labeled))


def label(setup: Setup, state: State) -> Iterator[Step]:
    """Asks the oracle for the labels of the selection, then trims the labeled images for the next joint training."""
    cycle = state.cycle + 1
    answer = yield from ask_oracle(setup, state, cycle)
    if answer.earlier is not None:
        correct_labels(state, answer.earlier, cycle)
    old_index = state.train_index
    record_answer(setup, state, answer, cycle)
    state.excluded = torch.empty(0, dtype=torch.int64)
    trimmed = setup.schedule(state.module is not None).is_trimmed(cycle)
    if trimmed and trim_size(state.num_initial_train) > 0:
        predictions = predict(setup, state.backbone, state.module, setup.dataset.train, state.train_index)
        loss = true_losses(predictions, state.labels()[predictions.index])
        num_old = len(old_index)
        state.excluded = trimmed_positions(
            old_index, loss[:num_old], predictions.index[num_old:], loss[num_old:], state.num_initial_train
        )
    yield Step(len(state.train_index) - len(old_index))


def ask_oracle(setup: Setup, state: State, cycle: int) -> Generator[Step, None, LabelAnswer]:
    """Asks the oracle for the labels of the selection until it answers; WaitingForLabels if the run should end instead.

    Yields a step whenever people have labeled for a moment, so that the run can be stopped meanwhile.
    """
    assert state.selection is not None
    state.pool.label(state.selection.index)  # raises ValueError for an invalid selection before annotators are asked
    request = label_request(setup, state, cycle)
    while True:
        start = time.perf_counter()
        answer = on_rank_zero(setup.world, lambda: setup.oracle(request))
        if answer is not None:
            return answer
        yield Step(0, waited=time.perf_counter() - start)


def record_answer(setup: Setup, state: State, answer: LabelAnswer, cycle: int) -> None:
    """Records the labels of the selection, its rejected images, and new classes, for which the head is enlarged."""
    assert state.selection is not None
    if len(answer.class_names) > len(state.class_names):
        state.class_names = answer.class_names
        build = setup.with_class_names(answer.class_names).build
        new_backbone = build(cycle)[0]
        state.members = [
            weights_of(grow_head(weights, build(cycle, member=member)[0]))
            for member, weights in enumerate(state.members, start=1)
        ]
        if state.unaveraged_weights is not None:
            state.unaveraged_weights = weights_of(grow_head(state.unaveraged_weights, new_backbone))
        state.backbone = grow_head(weights_of(state.backbone), new_backbone)
    state.annotations, state.labeling_seconds = answer.annotations, answer.seconds
    if answer.source:
        state.label_batches.append(LabelBatch(cycle, answer.time, answer.source))
    record_labels(setup, state, state.selection, answer.label, cycle)
    state.selection = None


def record_labels(setup: Setup, state: State, selection: Selection, labels: Tensor, cycle: int) -> None:
    """Adds the images of a selection that have a class to the labeled ones, and rejects those of no class (-2).

    UserError if no image of the initial pool has a class: there would be nothing to train on.
    """
    is_labeled = labels >= 0
    if cycle == 0 and not bool(is_labeled.any()):
        raise UserError(f"budget.initial={len(labels)}: no image of the initial pool has a class; raise it")
    labeled = Selection(selection.index[is_labeled], selection.score[is_labeled])
    add_labels(setup, state, labeled, labels[is_labeled], cycle)
    state.pool = state.pool.reject(selection.index[labels == REJECTED].cpu())


def label_request(setup: Setup, state: State, cycle: int) -> LabelRequest:
    """Returns the request to the oracle, with class probabilities that are computed on demand."""
    assert state.selection is not None
    index = state.selection.index

    def probabilities() -> Tensor:
        return predict_shard(setup, state.backbone, None, setup.dataset.train, index).logits.softmax(dim=1).cpu()

    trained = len(state.ledger.index) > 0
    reason = strategy_name(setup.query) if trained else "random, to begin with"
    names = state.class_names
    return LabelRequest(
        setup.image_dataset,
        setup.folder,
        cycle,
        state.selection,
        reason,
        names,
        probabilities if trained else None,
        setup.seed,
        state.annotations,
    )


def add_labels(setup: Setup, state: State, selection: Selection, labels: Tensor, cycle: int) -> None:
    """Adds labeled images to the pool and the ledger, and holds some out for validation."""
    state.pool = state.pool.label(selection.index)
    validation = shuffled(selection.index, state.pool.size, rng(setup.seed, "validation", cycle))
    # A partly labeled batch must keep at least one image for training; a wholly rejected one has none.
    held_out = max(0, min(setup.budget.held_out(len(selection.index)), len(selection.index) - 1))
    state.held_out = torch.cat([state.held_out, validation[:held_out]])
    new = (torch.full_like(selection.index, cycle), selection.index, labels, selection.score)
    state.ledger = Ledger(*(torch.cat(column) for column in zip(state.ledger, new, strict=True)))


def exclude_random(setup: Setup, state: State) -> None:
    """With trimming, excludes random labeled images from the first joint training (SSLPM's code)."""
    if setup.training.trim:
        num_excluded = trim_size(len(state.train_index))
        state.excluded = shuffled(state.train_index, state.pool.size, rng(setup.seed, "removed"))[:num_excluded]
