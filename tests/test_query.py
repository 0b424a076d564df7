"""One contract for every query strategy of conf/query."""

import copy
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from querying import context, predicting

from sslpl.cli import CONF
from sslpl.query.context import needs
from sslpl.query.scorers import entropy
from sslpl.query.selectors import ranked, selective_clustering
from sslpl.types import QueryStrategy

STRATEGIES = sorted(path.stem for path in (CONF / "query").glob("*.yaml"))
SHORT = {  # what the contract asks of a strategy that trains networks, it asks of a few steps too
    "vaal": ("query.steps=2", "query.batch_size=8"),
    "ta_vaal": ("query.steps=2", "query.batch_size=8"),
    "uncertain_gcn": ("query.steps=3",),
    "core_gcn": ("query.steps=3",),
}


def strategy(name: str) -> QueryStrategy:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", overrides=[f"query={name}", *SHORT.get(name, ())]).query)


def pick(name: str, n: int, seed: int = 0, **kinds: Any) -> list[int]:
    return strategy(name)(context(**kinds), n, torch.Generator().manual_seed(seed)).index.tolist()


@pytest.mark.parametrize("name", STRATEGIES)
class TestContract:
    @pytest.mark.parametrize(("pool", "labeled", "n"), [(60, 20, 1), (60, 20, 7), (60, 20, 40), (2, 1, 1), (30, 1, 29)])
    def test_picks_the_asked_number_of_distinct_unlabeled_images(
        self, name: str, pool: int, labeled: int, n: int
    ) -> None:
        seen = context(pool, labeled)
        picked = strategy(name)(seen, n, torch.Generator().manual_seed(0))
        assert len(picked.index) == len(picked.score) == n
        assert len(set(picked.index.tolist())) == n
        assert set(picked.index.tolist()) <= set(seen.unlabeled.tolist())
        assert (picked.index.dtype, picked.score.dtype) == (torch.int64, torch.float64)

    def test_is_deterministic_for_a_seed(self, name: str) -> None:
        assert pick(name, 7) == pick(name, 7)

    def test_breaks_ties_by_the_generator(self, name: str) -> None:
        assert len({tuple(pick(name, 7, seed, ties=True)) for seed in range(5)}) > 1

    def test_leaves_model_and_global_random_state_alone(self, name: str) -> None:
        seen = context()
        before = copy.deepcopy((seen.backbone.state_dict(), seen.module.state_dict()))
        state, training = torch.get_rng_state(), (seen.backbone.training, seen.module.training)
        gradients = [p.requires_grad for p in seen.backbone.parameters()]
        strategy(name)(seen, 7, torch.Generator().manual_seed(0))
        after = (seen.backbone.state_dict(), seen.module.state_dict())
        for old, new in zip(before, after, strict=True):
            assert all(torch.equal(old[key], new[key]) for key in old)
        assert torch.equal(state, torch.get_rng_state())
        assert (seen.backbone.training, seen.module.training) == training
        assert [p.requires_grad for p in seen.backbone.parameters()] == gradients
        assert all(p.grad is None for p in (*seen.backbone.parameters(), *seen.module.parameters()))

    def test_sees_no_hidden_label(self, name: str) -> None:
        blind = context(truth=None)
        if needs(strategy(name)).oracle:
            with pytest.raises(PermissionError):
                strategy(name)(blind, 7, torch.Generator().manual_seed(0))
        else:
            assert strategy(name)(blind, 7, torch.Generator().manual_seed(0)).index.tolist() == pick(name, 7)


def test_the_contract_covers_the_published_strategies() -> None:
    assert {"random", "entropy", "predicted_loss", "selective_clustering"} <= set(STRATEGIES)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [1.0, 0.0]])
    p = torch.tensor([1.0, 0.0]).softmax(0).double()
    expected = [torch.tensor(2.0).double().log().item(), 0.0, -(p * p.log()).sum().item()]
    score = entropy(predicting(logits), torch.Generator())
    torch.testing.assert_close(score.tolist(), expected)


def test_the_highest_come_first() -> None:
    score = torch.tensor([1.0, 3.0, 2.0, 3.0])
    orders = {tuple(ranked(score, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert orders == {(1, 3, 2, 0), (3, 1, 2, 0)}


def test_selective_clustering_by_brute_force() -> None:
    from sklearn.cluster import AgglomerativeClustering

    rng = torch.Generator().manual_seed(3)
    score, embedding = torch.randn(200, generator=rng), torch.randn(200, 6, generator=rng)
    best = torch.argsort(score, descending=True)[:120]
    clusters = AgglomerativeClustering(n_clusters=15, linkage="complete").fit_predict(embedding[best].numpy())
    expected = {max((best[clusters == c]).tolist(), key=lambda i: score[i].item()) for c in range(15)}
    assert set(selective_clustering(score, embedding, 15, 120, rng).tolist()) == expected


def test_a_random_subset_is_scored() -> None:
    seen = context(pool=200, labeled=20)
    scored = strategy("predicted_loss")
    whole = scored(seen, 10, torch.Generator().manual_seed(0))
    part = scored(seen, 10, torch.Generator().manual_seed(0), subset=20)  # type: ignore[call-arg]
    losses = dict(zip(seen.unlabeled.tolist(), seen.predictions.predicted_loss.tolist(), strict=True))
    assert whole.index.tolist() == sorted(losses, key=lambda i: -losses[i])[:10]
    assert part.index.tolist() != whole.index.tolist()
    torch.testing.assert_close(part.score.tolist(), [losses[i] for i in part.index.tolist()])
