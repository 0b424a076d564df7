"""Large pools: tables in files, faiss and rejection sampling against exact methods, limits checked before training."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TINY, Result
from contract import CHECKS, generator
from querying import context
from test_diversity import blobs, pool
from test_query import STRATEGIES, strategy

from sslpl.budget import Budget
from sslpl.clustering import large_pools
from sslpl.clustering.k_center import k_center_greedy
from sslpl.clustering.k_means import k_means
from sslpl.clustering.linkage import complete_linkage_bytes
from sslpl.clustering.neighbors import by_rows, mean_neighbor_distance, nearest
from sslpl.distributed.world import SINGLE_PROCESS
from sslpl.learn import inference, prediction_table
from sslpl.query import limits
from sslpl.query.cluster_margin import cluster_margin
from sslpl.query.kmeans import kmeans
from sslpl.query.probcover import probcover
from sslpl.query.score_then_select import score_then_select
from sslpl.query.selective_clustering import selective_clustering
from sslpl.turns import ALONE
from sslpl.types import Predictions, QueryStrategy, UserError

Command = Callable[..., Result]
SCALED = ("badge", "kmeans", "typiclust")  # what chooses from a large pool in another way


@pytest.fixture
def every_pool_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pools, "LARGE", 0)


def in_files(predictions: Predictions) -> Predictions:
    """Returns the same predictions, stored in files."""
    stored = []
    for table in predictions[1:]:
        kept = prediction_table.PredictionTable(len(predictions.index))
        for part in () if table is None else table.split(7):
            kept.append(part)
        stored.append(None if table is None else kept.whole())
    return Predictions(predictions.index, *stored)


class TestTables:
    @pytest.mark.parametrize("limit", [0, 2**28])
    def test_rows_come_back(self, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prediction_table, "MAPPED_BYTES", limit)
        for rows in (torch.randn(23, 5), torch.randn(23), torch.randn(23, 5).bfloat16(), torch.randn(5, 23).T):
            table = prediction_table.PredictionTable(23)
            for part in rows.split(10):
                table.append(part)
            assert (table.file is not None) == (limit == 0)
            assert torch.equal(table.whole(), rows)
            assert table.whole().dtype == rows.dtype

    def test_a_file_has_no_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
        monkeypatch.setattr(prediction_table, "MAPPED_BYTES", 0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        table = prediction_table.PredictionTable(2)
        table.append(torch.ones(2, 3))
        kept = table.whole()
        del table
        assert list(tmp_path.iterdir()) == []
        assert kept.sum() == 6

    @pytest.mark.parametrize("count", [0, 1, 50])
    def test_predictions_do_not_depend_on_where_they_lie(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = context(pool=60, labeled=10)
        setup = type("Setup", (), {"dataset": type("Data", (), {"class_names": tuple(range(seen.num_classes))})})()
        setup.world, setup.turns = SINGLE_PROCESS, ALONE
        setup.bfloat16, setup.device = False, seen.device
        setup.augmentation = type("Augmentation", (), {"normalize": seen.normalize})
        monkeypatch.setattr(inference, "inference_batch_size", lambda *_: 16)
        ask = partial(inference.predict, setup, seen.backbone, seen.module, seen.images, seen.unlabeled[:count])
        memory = ask()
        monkeypatch.setattr(prediction_table, "MAPPED_BYTES", 0)
        for kept, stored in zip(memory, ask(), strict=True):
            assert torch.equal(kept, stored)
        assert len(memory.embedding) == len(memory.predicted_loss) == count

    def test_a_network_may_learn_from_predictions(self) -> None:
        with torch.inference_mode():
            table = prediction_table.PredictionTable(4)
            table.append(torch.ones(4, 3))
        layer = torch.nn.Linear(3, 1)
        layer(table.whole()).sum().backward()
        assert layer.weight.grad is not None

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_picks_do_not_depend_on_where_predictions_lie(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        seen, ask = context(), strategy(name)
        monkeypatch.setattr(prediction_table, "MAPPED_BYTES", 0)
        stored = replace(seen, predict=lambda weights, index: in_files(seen.predict(weights, index)))
        memory, file = (ask(known, 7, generator()) for known in (seen, stored))
        assert memory.index.tolist() == file.index.tolist()
        assert torch.equal(memory.score.nan_to_num(), file.score.nan_to_num())


@pytest.mark.usefixtures("every_pool_is_large")
class TestContract:
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    @pytest.mark.parametrize("name", SCALED)
    def test_contract(self, name: str, check: Callable[[QueryStrategy], None]) -> None:
        check(strategy(name))


class TestKMeans:
    def test_as_good_as_the_exact_one(self) -> None:
        points = blobs(4000, dimensions=6, centers=7)  # more clusters than blobs, or random first centers miss some
        exact = k_means(points, 40, generator())
        found = large_pools.sampled_k_means(large_pools.GatheredRows(points, torch.arange(4000)), 40, generator())
        error, least = (clusters.distance.square().sum().item() for clusters in (found, exact))
        assert error < 1.1 * least
        far, near = nearest(points, found.centers)
        assert torch.equal(found.assignment, near)
        torch.testing.assert_close(found.distance, far, atol=1e-3, rtol=1e-4)

    def test_every_point_is_assigned_in_its_own_place(self) -> None:
        table, order = blobs(300), torch.randperm(300, generator=generator())[:200]
        points = large_pools.GatheredRows(table, order, unit=True)
        unit = torch.nn.functional.normalize(table[order])
        assert torch.equal(points[torch.arange(200)], unit)
        found = large_pools.sampled_k_means(points, 5, generator())
        assert torch.equal(found.assignment, nearest(unit, found.centers)[1])
        again = large_pools.sampled_k_means(points, 5, generator())
        assert torch.equal(found.centers, again.centers)

    def test_weights_move_the_centers(self) -> None:
        points = large_pools.GatheredRows(torch.tensor([[0.0], [1.0]]), torch.arange(2))
        heavy = large_pools.sampled_k_means(points, 1, generator(), torch.tensor([1.0, 9.0]))
        assert heavy.centers.item() == pytest.approx(0.9)

    @pytest.mark.usefixtures("every_pool_is_large")
    def test_the_images_of_all_blobs_are_chosen(self) -> None:
        embedding = blobs(300, centers=4)
        assert len(set((kmeans(pool(embedding), 4, generator()).index % 4).tolist())) >= 3
        picked = kmeans(pool(embedding), 20, generator(), weighted=True, prefilter=5)
        assert len(picked.index.unique()) == 20


class TestNeighbors:
    @pytest.mark.parametrize("count", [1, 5, 299])
    def test_the_exact_ones(self, count: int) -> None:
        points = blobs(300, dimensions=8)
        found, exact = (
            mean(points, count) for mean in (large_pools.approximate_neighbor_distance, mean_neighbor_distance)
        )
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)

    def test_nearly_the_exact_ones_in_lists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points = blobs(2000, dimensions=8, centers=30)
        monkeypatch.setattr(large_pools, "FLAT", 100)
        found, exact = (mean(points, 5) for mean in (large_pools.approximate_neighbor_distance, mean_neighbor_distance))
        assert ((found - exact).abs() < 1e-4 * exact).double().mean() > 0.9
        assert (found > 0.999 * exact).all()

    def test_copies_and_loners(self) -> None:
        assert large_pools.approximate_neighbor_distance(torch.ones(30, 3), 4).tolist() == [0] * 30
        assert large_pools.approximate_neighbor_distance(torch.ones(1, 3), 4).tolist() == [math.inf]

    def test_rows_in_parts(self) -> None:
        table, other = torch.randn(50, 3), torch.randn(50)
        assert torch.equal(by_rows(lambda a, b: a.sum(dim=1) + b, table, other), table.sum(dim=1) + other)


class TestKCenter:
    def test_each_is_the_farthest_however_few_are_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sslpl.clustering import k_center

        points = blobs(400, dimensions=3)
        expected = k_center_greedy(points[:5], points, 300, generator())
        every = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").double()
        centers = every[:5].amin(dim=0)
        for row, radius in zip(*expected, strict=True):
            assert centers[row] == pytest.approx(centers.max().item(), abs=2e-3)
            assert radius.item() == pytest.approx(centers.max().item(), abs=2e-3)
            centers = torch.minimum(centers, every[row])
        for batch, recent in ((1, 0), (7, 2), (400, 1000)):
            monkeypatch.setattr(k_center, "BATCH", batch)
            monkeypatch.setattr(k_center, "RECENT", recent)
            rows, radius = k_center_greedy(points[:5], points, 300, generator())
            assert torch.equal(rows, expected[0])
            torch.testing.assert_close(radius, expected[1])


class TestLimits:
    budget = Budget(1000, 1000, 3, 25_000)
    clustering = partial(score_then_select, selector=selective_clustering)
    cpu = torch.device("cpu")

    def test_candidates_that_do_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "free_memory", lambda _: complete_linkage_bytes(15_000, 512))
        limits.check_pool(self.clustering, replace(self.budget, candidates=15_000), 10**6, self.cpu)
        limits.check_pool(self.clustering, self.budget, 16_000, self.cpu)
        limits.check_pool(self.clustering, replace(self.budget, cycles=1), 10**6, self.cpu)
        limits.check_pool(strategy("entropy"), self.budget, 10**6, self.cpu)
        limits.check_pool(partial(self.clustering, subset=9000), self.budget, 10**6, self.cpu)
        for query in (self.clustering, strategy("cluster_margin")):
            with pytest.raises(UserError, match=r"^budget.candidates=25000: .* 3.\d GiB, and 1.\d GiB .* for 15,000$"):
                limits.check_pool(query, self.budget, 10**6, self.cpu)

    @pytest.mark.parametrize("name", ["bait", "probcover", "max_herding", "uherding", "uncertain_gcn", "core_gcn"])
    def test_what_cannot_do_with_a_large_pool(self, name: str) -> None:
        query = partial(strategy(name), subset=None)
        limits.check_pool(query, self.budget, large_pools.LARGE + 1000, self.cpu)
        limits.check_pool(partial(query, subset=10_000), self.budget, 10**6, self.cpu)
        with pytest.raises(UserError, match=rf"^query.subset=null: must be a number for {name} with 999,000 unlabeled"):
            limits.check_pool(query, self.budget, 10**6, self.cpu)

    @pytest.mark.parametrize("name", ["kmeans", "typiclust", "tcm"])
    def test_without_faiss(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "find_spec", lambda _: None)
        monkeypatch.setitem(sys.modules, "faiss", None)
        limits.check_pool(strategy(name), self.budget, large_pools.LARGE + 1000, self.cpu)
        limits.check_pool(partial(strategy("kmeans"), prefilter=10), self.budget, 10**6, self.cpu)
        limits.check_pool(strategy("refine"), self.budget, 10**6, self.cpu)  # its strategies see parts of the pool
        with pytest.raises(UserError, match=f"^{name} needs faiss for more than .* pip install faiss-cpu$"):
            limits.check_pool(strategy(name), self.budget, 10**6, self.cpu)
        monkeypatch.setattr(large_pools, "LARGE", 0)
        with pytest.raises(UserError, match=r"pip install faiss-cpu$"):
            strategy(name)(context(), 7, generator())

    def test_one_line_before_anything_is_written(
        self, sslpl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path
    ) -> None:
        monkeypatch.setattr(limits, "free_memory", lambda _: 2**20)
        for dry in ("true", "false"):
            done = sslpl(*TINY, f"runtime.dry_run={dry}")
            assert done.code == 2
            assert done.err.startswith("sslpl: budget.candidates=200: must be lower: ")
            assert len(done.err.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_subset_is_what_is_compared(self) -> None:
        seen = pool(blobs(60), labeled=5)
        for name in ("probcover", "max_herding", "uherding", "bait"):
            picked = strategy(name)(seen, 5, generator(), subset=5)
            assert len(picked.index.unique()) == 5
        whole = probcover(seen, 5, generator(), delta=3.0).score
        assert whole.sum() == 0  # a labeled image's ball covers all of the pool
        near = probcover(pool(blobs(60)[:, :2]), 5, generator(), delta=0.3).score
        assert probcover(pool(blobs(60)[:, :2]), 5, generator(), delta=0.3, subset=10).score[0] < near[0]


def test_cluster_margin_prints_that_its_margins_are_capped(capfd: pytest.CaptureFixture[str]) -> None:
    query = partial(cluster_margin, margin_factor=10)
    limits.check_pool(query, Budget(100, 50, 2, 400), 1000, torch.device("cpu"))
    line = "cluster_margin: selects from budget.candidates=400 lowest margins instead of 500"
    assert line in capfd.readouterr().err
    limits.check_pool(query, Budget(100, 40, 2, 400), 1000, torch.device("cpu"))
    assert capfd.readouterr().err == ""
