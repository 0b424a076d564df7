"""Strategies against numbers computed by their authors' published code (`tests/data/strategies/README.md`)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from published_cases import SEEDS, case, published, seen
from torch.nn.functional import normalize

from sslpl.query import alfa_mix, bait, dropquery
from sslpl.query.alfa_mix import mixing_candidates
from sslpl.query.class_typical import central_rows
from sslpl.query.dropquery import change_threshold, changed_predictions
from sslpl.types import QueryStrategy, UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "regularization"), [("one", 1.0), ("hundredth", 0.01)])
def test_bait_selects_the_images_of_the_published_code(seed: int, name: str, regularization: float) -> None:
    drawn = case(seed)
    chosen = bait(seen(drawn), drawn.n, seeded(), regularization=regularization).index
    assert sorted(chosen.tolist()) == published("bait", seed)[name].tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("samples", [3, 5])
def test_dropquery_has_the_candidates_of_the_published_code(seed: int, samples: int) -> None:
    """With the same dropout masks; which candidates k-means then selects depends on the generator."""
    drawn = case(seed)
    seen_pool = seen(drawn)
    embedding, logits = seen_pool.predictions.embedding, seen_pool.predictions.logits
    keep = torch.from_numpy(np.random.default_rng([seed, samples]).random((samples, *embedding.shape)) >= 0.75)
    changes = changed_predictions(drawn.head, embedding, logits, keep, 0.75)
    expected = published("dropquery", seed)
    for name, n in ((f"candidates_{samples}", drawn.n), (f"candidates_{samples}_one", 1)):
        candidates = (changes > change_threshold(changes, samples, 25 * n)).nonzero()[:, 0]
        assert candidates.tolist() == expected[name].tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [1, 10])
def test_alfa_mix_has_the_candidates_of_the_published_code(seed: int, factor: int) -> None:
    """Which candidates k-means then selects depends on the generator."""
    drawn = case(seed)
    candidates = mixing_candidates(seen(drawn), factor * drawn.n, 0.2).nonzero()[:, 0] + drawn.labeled
    assert candidates.tolist() == published("alfa_mix", seed)[f"candidates_{factor}"].tolist()


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_the_batch_is_spread_over_the_candidates(seed: int) -> None:
    """The selected images are candidates, and closer to all of them than random ones."""
    drawn = case(seed)
    context = seen(drawn)
    is_candidate = mixing_candidates(context, drawn.n, 0.2)
    chosen = alfa_mix(context, drawn.n, seeded()).index - drawn.labeled
    assert is_candidate[chosen].all()
    points = normalize(context.predictions.embedding)
    spread = torch.cdist(points[is_candidate], points[chosen]).amin(dim=1).square().mean()
    at_random = [
        is_candidate.nonzero()[torch.randperm(int(is_candidate.sum()), generator=seeded(k))[: drawn.n], 0]
        for k in range(20)
    ]
    assert all(
        spread < torch.cdist(points[is_candidate], points[rows]).amin(dim=1).square().mean() for rows in at_random
    )


def test_too_few_candidates_are_completed_at_random() -> None:
    drawn = case(14)  # 114 candidates at the highest bound
    context = seen(drawn)
    candidates = set((mixing_candidates(context, 150, 0.2).nonzero()[:, 0] + drawn.labeled).tolist())
    first, second = (set(alfa_mix(context, 150, seeded(k)).index.tolist()) for k in range(2))
    assert candidates < first
    assert candidates < second
    assert first != second


@pytest.mark.parametrize("strategy", [dropquery, alfa_mix])
def test_a_backbone_without_a_linear_head(strategy: QueryStrategy) -> None:
    context = replace(seen(case(0)), backbone=torch.nn.Identity())
    with pytest.raises(UserError, match=r"^this query needs a backbone whose last layer is an nn.Linear named `head`$"):
        strategy(context, 5, seeded())


@pytest.mark.parametrize("seed", SEEDS)
def test_boss_has_the_class_balanced_batches_of_the_published_code(seed: int) -> None:
    drawn = case(seed)
    context, expected = seen(drawn), published("boss", seed)
    embedding = context.predictions.embedding
    every, candidates = torch.arange(len(embedding)), published("dropquery", seed)["candidates_3"].long()
    assert central_rows(context, every, embedding, 5 * drawn.n).tolist() == expected["typical"].tolist()
    chosen = central_rows(context, candidates, normalize(embedding.double()), 5 * drawn.n)
    assert chosen.tolist() == expected["dropquery"].tolist()
