"""The query phase: the query strategy selects the next images to label."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from sslpl.distributed.collectives import on_rank_zero, request_work
from sslpl.learn.inference import predict
from sslpl.pool import random_pool
from sslpl.query.context import Context, Weights
from sslpl.seeds import rng, seeded_draws, shuffled
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import UNLABELED, Predictions, Selection, Step


def initial_selection(setup: Setup, state: State) -> Selection:
    """Returns the initial pool: the labeled images if only some have labels, else a random or a stratified sample, or
    the selection of the strategy, which sees no label."""
    labels, initial = setup.dataset.train_labels, int(setup.budget.initial)
    known, generator = (labels != UNLABELED).nonzero().flatten(), rng(setup.seed, "initial")
    if 0 < len(known) < state.pool.size:
        index = shuffled(known, state.pool.size, generator)
    elif setup.budget.initial_pool == "query":
        return run_strategy(setup, state, initial, rng(setup.seed, "initial query"))
    else:
        frequency = setup.budget.initial_frequency(len(setup.dataset.class_names))
        classes = (labels, frequency) if frequency is not None else None
        index = random_pool(state.pool.size, initial, generator, classes).labeled
    return Selection(index, torch.full((len(index),), torch.nan, dtype=torch.float64))


def query(setup: Setup, state: State) -> Iterator[Step]:
    """Selects the images to label next with the query strategy."""
    state.selection = run_strategy(setup, state, int(setup.budget.per_cycle), rng(setup.seed, "query", state.cycle))
    state.predictions = None
    yield Step(len(state.pool.unlabeled))


def run_strategy(setup: Setup, state: State, n: int, generator: Generator) -> Selection:
    """Runs the strategy on rank 0, with predictions sharded over all ranks, and returns its selection on every rank."""

    def select() -> Selection:  # seeded, because a strategy may train networks with dropout
        with seeded_draws(setup.device, setup.seed, "query masks", state.cycle):
            return setup.query(query_context(setup, state), n, generator)

    return on_rank_zero(setup.world, select, partial(predict_with_weights, setup, state))


def predict_with_weights(setup: Setup, state: State, weights: Weights | None, index: Tensor) -> Predictions:
    """Predicts images of the pool with the networks of `state`, or with a backbone that has the given weights."""
    if weights is None:
        return predict(setup, state.backbone, state.module, setup.dataset.train, index)
    backbone = copy.deepcopy(state.backbone)
    backbone.load_state_dict(weights)
    return predict(setup, backbone, None, setup.dataset.train, index)


def query_context(setup: Setup, state: State) -> Context:
    """Returns the context of the strategy: the state without the hidden labels."""
    data = setup.dataset

    def predict_on_all_ranks(weights: Weights | None, index: Tensor) -> Predictions:
        if setup.world.size > 1:
            request_work(
                setup.world, None if weights is None else {name: value.cpu() for name, value in weights.items()}, index
            )
        return predict_with_weights(setup, state, weights, index)

    return Context(
        unlabeled=state.pool.unlabeled,
        labeled=state.train_index,
        labels=state.labels()[state.train_index],
        candidates=int(setup.budget.candidates),
        num_classes=len(data.class_names),
        device=setup.device,
        backbone=state.backbone,
        module=state.module,
        images=data.train,
        normalize=setup.augmentation.normalize,
        augment=setup.augmentation.random_weak,
        predict=predict_on_all_ranks,
        cycle=state.cycle,
        cycles=setup.budget.cycles,
        precomputed=state.predictions,
        previous_weights=state.previous_weights,
        snapshots=state.snapshots,
        truth=data.train_labels if setup.needs.oracle else None,
    )
