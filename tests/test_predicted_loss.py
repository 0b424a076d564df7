"""Strategies that use predicted losses: as expected losses, as weights, as a filter, and as the mass of clusters."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from conftest import TINY, Result, run_folder
from querying import context, predicting
from strategy_cases import case_context, random_case
from test_query import strategy
from torch import Generator, Tensor

from sslpl.budget import Budget
from sslpl.clustering import large_pools
from sslpl.query import (
    badge,
    expected_loss,
    expected_reduction,
    limits,
    margin,
    max_herding,
    predicted_loss,
    score_then_query,
    uherding,
)
from sslpl.query.context import needs
from sslpl.query.expected_reduction import reductions
from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection, UserError

Command = Callable[..., Result]
STRATEGIES = ("uherding_expected_loss", "refine_expected_loss", "badge_highest_loss", "expected_loss_reduction")


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def constant(context: QueryContext, rng: Generator) -> Tensor:
    return torch.ones(len(context.unlabeled))


def test_expected_losses_are_compared_as_predicted_losses_are() -> None:
    predicted = torch.tensor([0.3, -2.0, 4.0, 1000.0, 999.0])
    expected = expected_loss(predicting(torch.zeros(5, 2), predicted_loss=predicted), seeded())
    assert expected[3] == 1
    for higher, lower in ((0, 1), (2, 0), (3, 4)):
        shifted = predicting(torch.zeros(2, 2), predicted_loss=predicted[[higher, lower]])
        mean = expected_loss(shifted, seeded())
        chance = (predicted[higher] - predicted[lower]).double().sigmoid()
        assert (mean[0] / mean.sum()).item() == pytest.approx(chance.item())


class TestUHerdingByAScorer:
    case = random_case(13)

    def test_equal_scores_are_max_herding(self) -> None:
        seen = case_context(self.case)
        weighted = uherding(seen, self.case.n, seeded(), uncertainty=constant, radius=0.8)
        plain = max_herding(seen, self.case.n, seeded(), radius=0.8)
        assert weighted.index.tolist() == plain.index.tolist()
        torch.testing.assert_close(weighted.score, plain.score)

    def test_images_count_by_their_scores(self) -> None:
        seen = case_context(self.case)
        score = torch.zeros(len(seen.unlabeled))
        score[[5, 40, 77]] = torch.tensor([1.0, 3.0, 2.0])
        selection = uherding(seen, 3, seeded(), uncertainty=lambda *_: score, radius=1e-3)
        assert selection.index.tolist() == seen.unlabeled[[40, 77, 5]].tolist()
        torch.testing.assert_close(selection.score * len(score), torch.tensor([3.0, 2.0, 1.0]).double())

    def test_negative_scores_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"^query.uncertainty .* choose a scorer without negative ones$"):
            uherding(case_context(self.case), 3, seeded(), uncertainty=margin)


class TestFilter:
    @pytest.mark.parametrize(("candidates", "considered"), [(60, 60), (3, 10)])
    def test_the_strategy_sees_the_highest_scores_alone(self, candidates: int, considered: int) -> None:
        seen = replace(context(pool=200, labeled=20), candidates=candidates)
        loss = predicted_loss(seen, seeded())
        highest = seen.unlabeled[loss.argsort(descending=True)[:considered]].sort().values

        def the_first(part: QueryContext, n: int, rng: Generator) -> Selection:
            assert torch.equal(part.unlabeled, highest)
            return select_rows(part, torch.arange(n))

        selection = score_then_query(seen, 10, seeded(), scorer=predicted_loss, strategy=the_first)
        assert selection.index.tolist() == highest[:10].tolist()
        by_index = dict(zip(seen.unlabeled.tolist(), loss.double().tolist(), strict=True))
        assert selection.score.tolist() == [by_index[index] for index in selection.index.tolist()]

    def test_a_random_subset_is_scored(self) -> None:
        seen = context(pool=200, labeled=20)
        sizes = []

        def counted(part: QueryContext, rng: Generator) -> Tensor:
            sizes.append(len(part.unlabeled))
            return predicted_loss(part, rng)

        score_then_query(seen, 10, seeded(), scorer=counted, strategy=badge, subset=50)
        assert sizes == [50]


class TestExpectedReduction:
    def test_each_reduces_the_total_the_most(self) -> None:
        score = torch.rand(60, generator=seeded(1), dtype=torch.float64)
        cluster = torch.randint(7, (60,), generator=seeded(2))
        total = {k: score[cluster == k].sum().item() for k in range(7)}
        labeled = dict.fromkeys(total, 0)
        greedy = []
        for _ in range(20):
            gain = {k: total[k] / (1 + labeled[k]) - total[k] / (2 + labeled[k]) for k in total}
            best = max(gain, key=lambda k: gain[k] if labeled[k] < int((cluster == k).sum()) else -1)
            greedy.append(gain[best])
            labeled[best] += 1
        torch.testing.assert_close(
            reductions(score, cluster).sort(descending=True).values[:20].tolist(),
            greedy,
        )

    @pytest.mark.parametrize("large", [False, True])
    def test_heavy_clusters_first_and_their_highest_scores(self, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if large:
            pytest.importorskip("faiss")
            monkeypatch.setattr(large_pools, "LARGE", 0)
        center = torch.tensor([0.0, 100, 200]).repeat_interleave(20)[:, None]
        embedding = center + torch.randn(60, 4, generator=seeded())
        score = torch.rand(60, generator=seeded(1)) * torch.tensor([8.0, 1.0, 1.1]).repeat_interleave(20)
        best = score[:20].argsort(descending=True)
        rows = expected_reduction(score, embedding, 3, 60, seeded())
        assert rows[:2].tolist() == best[:2].tolist()  # 8 / 2 and 8 / 6 of the same total are above 1.1 / 2

    def test_negative_scores_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"^query/selector=expected_reduction .* without negative ones$"):
            expected_reduction(torch.tensor([1.0, -0.1]), torch.zeros(2, 1), 1, 2, seeded())


@pytest.mark.parametrize("name", STRATEGIES)
def test_they_need_a_module(sslpl: Command, name: str) -> None:
    assert needs(strategy(name)).module
    done = sslpl(*TINY, "method=random", f"query={name}")
    assert done.code == 2
    assert re.fullmatch(r"sslpl: module=none: query[\w.]* needs predicted losses; choose module=.*\n", done.err)


def test_a_run_takes_another_scorer_for_uherding(sslpl: Command) -> None:
    done = sslpl(*TINY, "query=uherding_expected_loss", "query/scorer@query.uncertainty=entropy")
    assert done.code == 0, done.err
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert config["query"]["uncertainty"]["_target_"] == "sslpl.query.entropy"
    assert run_folder().parent.name == "sslpm+query=uherding_expected_loss+query.scorer-query.uncertainty=entropy"


@pytest.mark.parametrize("name", ["expected_loss_reduction", "refine_expected_loss", "badge_highest_loss"])
def test_the_limits_of_large_pools(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda _: None)
    query, budget, device = strategy(name), Budget(1000, 1000, 3, 25_000), torch.device("cpu")
    if name == "expected_loss_reduction":
        with pytest.raises(UserError, match=r"needs faiss for more than .* pip install faiss-cpu$"):
            limits.check_pool(query, budget, 10**6, device)
        query = partial(query, subset=10_000)
    limits.check_pool(query, budget, 10**6, device)
