"""BoSS: the best of many strategies' batches by the hidden labels, an oracle baseline (Huseljic et al. 2026)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from sslpl.query.alfa_mix import alfa_mix
from sslpl.query.badge import badge
from sslpl.query.bait_binary import bait_binary
from sslpl.query.class_typical import class_dropquery, class_typical
from sslpl.query.core_set import core_set
from sslpl.query.dropquery import dropquery
from sslpl.query.linear_probe import fit_linear_probe, probe_accuracy
from sslpl.query.random import random
from sslpl.query.score_then_select import score_then_select
from sslpl.query.scorers import margin
from sslpl.query.selection import hold_out, subsample
from sslpl.query.selectors import top
from sslpl.query.typiclust import typiclust
from sslpl.types import Count, PositiveOrZero, QueryContext, QueryStrategy, Selection

STRATEGIES: tuple[QueryStrategy, ...] = (  # of the published experiments
    random,
    typiclust,
    dropquery,
    bait_binary,
    class_typical,
    class_dropquery,
    partial(score_then_select, scorer=margin, selector=top),
    badge,
    core_set,
    alfa_mix,
)


def boss(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    batches: Count = 100,
    max_subset: Count = 5000,
    evaluated: Count = 10_000,
    weight_decay: PositiveOrZero = 5e-4,
    steps: Count = 100,
    oracle_baseline: bool = False,  # noqa: ARG001  # read by `needs`
) -> Selection:
    """Selects the batch whose true labels improve a retrained linear head the most (BoSS: Huseljic et al. 2026).

    `batches` batches are selected by ten strategies, drawn at random, each from a random subset of 4 n to `max_subset`
    images, as published. For each of them a linear head is fitted from scratch to the embeddings of the labeled images
    and of the batch with its hidden labels; the lowest error wins. The published code trains by SGD for 50 epochs
    with this `weight_decay`; here L-BFGS of at most `steps` iterations minimizes the same loss. There the error is that
    on the test set; here it is that on `evaluated` random images of the pool, at most half of it, which the batches do
    not contain (ours). The score is the accuracy on these.
    """
    truth, embedding = context.hidden_labels().to(context.device), context.predictions.embedding
    known, labels = context.labeled_predictions.embedding, context.labels.to(context.device)
    held_out, pool = hold_out(context, n, evaluated, rng)
    test, test_truth = embedding[held_out], truth[held_out]
    fit = partial(fit_linear_probe, classes=context.num_classes, weight_decay=weight_decay, steps=steps)
    start = fit(known, labels)
    best, most = pool.unlabeled[:0], -1.0
    for batch in candidate_batches(pool, n, batches, max_subset, rng):
        rows = torch.searchsorted(context.unlabeled, batch).to(context.device)
        weight = fit(torch.cat([known, embedding[rows]]), torch.cat([labels, truth[rows]]), start=start)
        if (share := probe_accuracy(weight, test, test_truth)) > most:
            best, most = batch, share
    return Selection(best, torch.full((n,), most, dtype=torch.float64))


def candidate_batches(context: QueryContext, n: int, batches: int, max_subset: int, rng: Generator) -> Iterator[Tensor]:
    """Yields batches of n positions in the pool, each by a random strategy from a random subset."""
    for strategy in torch.randint(len(STRATEGIES), (batches,), generator=rng).tolist():
        size = int(torch.randint(4 * n, max(4 * n, max_subset) + 1, (), generator=rng))
        yield STRATEGIES[strategy](subsample(context, n, size, rng), n, rng).index
