"""Images become labeled: an oracle is asked, the ledger written, the next training's images chosen."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslpl.distributed.collectives import on_rank_zero
from sslpl.learn.inference import predict, predict_shard
from sslpl.learn.metrics import true_losses
from sslpl.models.backbone import grow_head
from sslpl.oracle.label_request import strategy_name
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup
from sslpl.state import LabelBatch, Ledger, State, weights_of
from sslpl.trimming import trim_size, trimmed_positions
from sslpl.types import LabelRequest, Selection, Step


def label_initial_pool(setup: Setup, state: State) -> Iterator[Step]:
    """Has the first images labeled, where nobody has labeled any."""
    ask_oracle(setup, state, cycle=0)
    exclude_random(setup, state)
    if setup.needs.previous:  # the networks may have grown
        state.previous_weights = weights_of(state.backbone)
    yield Step(len(state.pool.labeled))


def label(setup: Setup, state: State) -> Iterator[Step]:
    """Has the picked images labeled and decides which images the next joint training leaves out."""
    before = state.train_index
    ask_oracle(setup, state, cycle=state.cycle + 1)
    state.excluded = torch.empty(0, dtype=torch.int64)
    trimmed = setup.schedule(state.module is not None).is_trimmed(state.cycle + 1)
    if trimmed and trim_size(state.num_initial_train) > 0:
        both = predict(setup, state.backbone, state.module, setup.dataset.train, state.train_index)
        loss = true_losses(both, state.labels()[both.index])
        old = len(before)
        state.excluded = trimmed_positions(before, loss[:old], both.index[old:], loss[old:], state.num_initial_train)
    yield Step(len(state.train_index) - len(before))


def ask_oracle(setup: Setup, state: State, cycle: int) -> None:
    """Asks the oracle for the classes of the picked images and files what it tells; Waiting if that is nothing yet."""
    assert state.selection is not None
    index, score = state.selection
    state.pool.label(index)  # before anybody is asked in vain: ValueError for a strategy's mistake
    answer = on_rank_zero(setup.world, lambda: setup.oracle(label_request(setup, state, cycle)))
    told = answer.label >= 0
    if len(answer.class_names) > len(state.class_names):
        state.class_names = answer.class_names
        fresh = setup.with_class_names(answer.class_names).build(cycle)[0]
        if state.unaveraged_weights is not None:
            state.unaveraged_weights = weights_of(grow_head(state.unaveraged_weights, fresh))
        state.backbone = grow_head(weights_of(state.backbone), fresh)
    if answer.source:
        state.label_batches.append(LabelBatch(cycle, answer.time, answer.source))
    add_labels(setup, state, Selection(index[told], score[told]), answer.label[told], cycle)
    state.selection = None


def label_request(setup: Setup, state: State, cycle: int) -> LabelRequest:
    """What the oracle is asked: the picked images, with what the backbone says of them if that is asked for."""
    assert state.selection is not None
    index = state.selection.index

    def probabilities() -> Tensor:
        return predict_shard(setup, state.backbone, None, setup.dataset.train, index).logits.softmax(dim=1).cpu()

    trained = len(state.ledger.index) > 0
    reason = strategy_name(setup.query) if trained else "random, to begin with"
    names = state.class_names
    return LabelRequest(
        setup.dataset, setup.folder, cycle, state.selection, reason, names, probabilities if trained else None
    )


def add_labels(setup: Setup, state: State, selection: Selection, labels: Tensor, cycle: int) -> None:
    """Moves images into the labeled pool and writes them into the ledger; some are held out."""
    state.pool = state.pool.label(selection.index)
    validation = shuffled(selection.index, state.pool.size, rng(setup.seed, "validation", cycle))
    # Of a batch that came back in part, something is left to learn from.
    held_out = min(setup.budget.held_out(len(selection.index)), len(selection.index) - 1)
    state.held_out = torch.cat([state.held_out, validation[:held_out]])
    new = (torch.full_like(selection.index, cycle), selection.index, labels, selection.score)
    state.ledger = Ledger(*(torch.cat(column) for column in zip(state.ledger, new, strict=True)))


def exclude_random(setup: Setup, state: State) -> None:
    """Leaves random images out of the first training, with trimming."""
    if setup.training.trim:
        removed = trim_size(len(state.train_index))
        state.excluded = shuffled(state.train_index, state.pool.size, rng(setup.seed, "removed"))[:removed]
