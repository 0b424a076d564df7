"""Images become labeled: an oracle is asked, the ledger written, the next training's images chosen."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslpl.distributed import led
from sslpl.learn.evaluation import predict, predict_all, true_losses
from sslpl.models.backbones import grown
from sslpl.oracle.requests import strategy_name
from sslpl.pool import removal_size, trimmed
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup, Step
from sslpl.state import Ledger, Received, State, weights_of
from sslpl.types import Picked, Request


def start(setup: Setup, state: State) -> Iterator[Step]:
    """Has the first images labeled, where nobody has labeled any."""
    reveal(setup, state, cycle=0)
    exclude_some(setup, state)
    if setup.needs.previous:  # the networks may have grown
        state.earlier = weights_of(state.backbone)
    yield Step(len(state.pool.labeled))


def label(setup: Setup, state: State) -> Iterator[Step]:
    """Has the picked images labeled and decides which images the next joint training leaves out."""
    before = state.learned
    reveal(setup, state, cycle=state.cycle + 1)
    next_is_last = state.cycle + 1 == setup.budget.cycles - 1
    state.excluded = torch.empty(0, dtype=torch.int64)
    if setup.training.trim and not next_is_last and removal_size(state.first_learned) > 0:
        both = predict(setup, state.backbone, state.module, setup.dataset.train, state.learned)
        loss = true_losses(both, state.labels()[both.index])
        old = len(before)
        state.excluded = trimmed(before, loss[:old], both.index[old:], loss[old:], state.first_learned)
    yield Step(len(state.learned) - len(before))


def reveal(setup: Setup, state: State, cycle: int) -> None:
    """Asks the oracle for the classes of the picked images and files what it tells; Waiting if that is nothing yet."""
    assert state.picked is not None
    index, score = state.picked
    state.pool.label(index)  # before anybody is asked in vain: ValueError for a strategy's mistake
    answer = led(setup.world, lambda: setup.oracle(request(setup, state, cycle)))
    told = answer.label >= 0
    if len(answer.class_names) > len(state.class_names):
        state.class_names = answer.class_names
        fresh = setup.knowing(answer.class_names).build(cycle)[0]
        if state.raw is not None:
            state.raw = weights_of(grown(state.raw, fresh))
        state.backbone = grown(weights_of(state.backbone), fresh)
    if answer.source:
        state.received.append(Received(cycle, answer.time, answer.source))
    enroll(setup, state, Picked(index[told], score[told]), answer.label[told], cycle)
    state.picked = None


def request(setup: Setup, state: State, cycle: int) -> Request:
    """What the oracle is asked: the picked images, with what the backbone says of them if that is asked for."""
    assert state.picked is not None
    index = state.picked.index

    def probabilities() -> Tensor:
        return predict_all(setup, state.backbone, None, setup.dataset.train, index).logits.softmax(dim=1).cpu()

    trained = len(state.ledger.index) > 0
    reason = strategy_name(setup.query) if trained else "random, to begin with"
    names = state.class_names
    return Request(setup.dataset, setup.folder, cycle, state.picked, reason, names, probabilities if trained else None)


def enroll(setup: Setup, state: State, picked: Picked, labels: Tensor, cycle: int) -> None:
    """Moves images into the labeled pool and writes them into the ledger; some are held out."""
    state.pool = state.pool.label(picked.index)
    validation = shuffled(picked.index, state.pool.size, rng(setup.seed, "validation", cycle))
    # Of a batch that came back in part, something is left to learn from.
    held_out = min(setup.budget.held_out(len(picked.index)), len(picked.index) - 1)
    state.held_out = torch.cat([state.held_out, validation[:held_out]])
    new = (torch.full_like(picked.index, cycle), picked.index, labels, picked.score)
    state.ledger = Ledger(*(torch.cat(column) for column in zip(state.ledger, new, strict=True)))


def exclude_some(setup: Setup, state: State) -> None:
    """Leaves random images out of the first training, with trimming."""
    if setup.training.trim:
        removed = removal_size(len(state.learned))
        state.excluded = shuffled(state.learned, state.pool.size, rng(setup.seed, "removed"))[:removed]
