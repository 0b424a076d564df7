"""ClaSP: most images are drawn class by class, by score and predicted probability (Lüth, Traub et al. 2026)."""

from itertools import islice

import torch
from torch import Generator, Tensor

from sslpl.clustering.neighbors import blocks
from sslpl.query.score_then_select import Scorer
from sslpl.query.selection import check_not_negative, select_rows, subsample
from sslpl.query.selectors import gumbel_noise
from sslpl.types import Count, Positive, QueryContext, Selection, Share

SMALLEST = 2.0**-1000  # replaces a score of 0, so that noise orders these too


def class_stratified(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    scorer: Scorer,
    share: Share = 0.66,
    first_beta: Positive = 1.0,
    last_beta: Positive = 100.0,
    subset: Count | None = None,
) -> Selection:
    """Draws a `share` of the images class by class in proportion to (score x class probability) ^ beta (ClaSP).

    Lüth, Traub et al. 2026, with the values of their code; with the entropy as scorer it is their ClaSP PE, made for
    parts of medical images, here for whole images and without a background class. Each class gets equally many, the
    remainder goes to random ones; the other images are drawn in proportion to score ^ beta alone. Classes and others
    take their turns in random order and skip images that are taken. beta grows geometrically from `first_beta` at the
    first query to `last_beta` at the last, so that the noise fades. The score is that of the scorer; UserError if one
    is negative.
    """
    context = subsample(context, n, subset, rng)
    score = scorer(context, rng).cpu().double()
    check_not_negative(score, "query=class_stratified draws in proportion to scores")
    beta = scheduled_beta(context.cycle, context.cycles - 1, first_beta, last_beta)
    order, quotas = drawn_quotas(n, context.num_classes, share, rng)
    rows = highest_of_each_class(score.clamp(min=SMALLEST).log(), context.predictions.logits, n, beta, rng)
    return select_rows(context, taken_in_turn(rows[order], quotas[order]), score)


def scheduled_beta(query: int, queries: int, first: float, last: float) -> float:
    """Returns the exponent of a query (from 0): geometric between the first and the last of all queries."""
    return float(first * (last / first) ** (min(query, queries - 1) / (queries - 1) if queries > 1 else 0.0))


def drawn_quotas(n: int, classes: int, share: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Returns a random order of the strata [classes + 1], and the number of images that each selects.

    The last stratum is that of all classes together.
    """
    stratified = int(n * share)
    quotas = torch.full((classes + 1,), stratified // classes)
    quotas[torch.randperm(classes, generator=rng)[: stratified % classes]] += 1
    quotas[-1] = n - stratified
    return torch.randperm(classes + 1, generator=rng), quotas


def highest_of_each_class(log_score: Tensor, logits: Tensor, n: int, beta: float, rng: Generator) -> Tensor:
    """Returns the rows [classes + 1, n] of the highest noisy scores of each class, and of all together, descending."""
    highest = torch.empty(logits.shape[1] + 1, 0, dtype=torch.float64)
    row = torch.empty(logits.shape[1] + 1, 0, dtype=torch.int64)
    for part in blocks(len(logits), len(highest), log_score.device):
        scores = class_log_scores(log_score[part], logits[part])
        noisy = beta * scores + gumbel_noise(scores.shape, rng)
        merged = torch.cat([highest, noisy.T], dim=1)
        rows = torch.cat([row, torch.arange(part.start, part.stop).expand(len(row), -1)], dim=1)
        highest, best = merged.topk(min(n, merged.shape[1]), dim=1)
        row = rows.gather(1, best)
    return row


def class_log_scores(log_score: Tensor, logits: Tensor) -> Tensor:
    """Returns log(score x probability) of each class, then log score [rows, classes + 1], on the CPU."""
    log_probability = logits.double().log_softmax(dim=1).cpu()
    return torch.cat([log_score[:, None] + log_probability, log_score[:, None]], dim=1)


def taken_in_turn(rows: Tensor, quotas: Tensor) -> Tensor:
    """Returns the first rows of each stratum [strata, n] that no earlier one took, as many as its quota [strata]."""
    taken: dict[int, None] = {}
    for ranked_rows, quota in zip(rows.tolist(), quotas.tolist(), strict=True):
        free = (row for row in ranked_rows if row not in taken)
        taken |= dict.fromkeys(islice(free, quota))
    return torch.tensor(list(taken))
