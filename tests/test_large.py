"""Large pools: tables in files, faiss and rejection sampling against the exact ways, limits told before training."""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TINY, Result
from contract import CHECKS, generator
from querying import context, predicting
from test_diversity import blobs, pool
from test_query import STRATEGIES, strategy
from torch import Tensor

from sslpl.learn import evaluation, storage
from sslpl.models.backbones import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.pool import Budget
from sslpl.query import large, limits
from sslpl.query.coverage import probcover
from sslpl.query.diversity import badge, gradient_distances, gradients_between, k_center_greedy, kmeans
from sslpl.query.kmeans import k_means
from sslpl.query.linkage import complete_linkage_bytes
from sslpl.query.neighbors import by_rows, mean_neighbor_distance, nearest
from sslpl.query.selectors import selective_clustering
from sslpl.query.strategies import score_then_select
from sslpl.types import Predictions, QueryStrategy, UserError

Command = Callable[..., Result]
SCALED = ("badge", "kmeans", "typiclust")  # what chooses from a large pool in another way


@pytest.fixture
def every_pool_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 0)


def in_files(predictions: Predictions) -> Predictions:
    """The same predictions, as they come out of tables in files."""
    stored = []
    for table in predictions[1:]:
        kept = storage.Table(len(predictions.index))
        for part in () if table is None else table.split(7):
            kept.append(part)
        stored.append(None if table is None else kept.whole())
    return Predictions(predictions.index, *stored)


class TestTables:
    @pytest.mark.parametrize("limit", [0, 2**30])
    def test_rows_come_back(self, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "MAPPED", limit)
        for rows in (torch.randn(23, 5), torch.randn(23), torch.randn(23, 5).bfloat16(), torch.randn(5, 23).T):
            table = storage.Table(23)
            for part in rows.split(10):
                table.append(part)
            assert (table.file is not None) == (limit == 0)
            assert torch.equal(table.whole(), rows)
            assert table.whole().dtype == rows.dtype

    def test_a_file_has_no_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
        monkeypatch.setattr(storage, "MAPPED", 0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        table = storage.Table(2)
        table.append(torch.ones(2, 3))
        kept = table.whole()
        del table
        assert list(tmp_path.iterdir()) == []
        assert kept.sum() == 6

    @pytest.mark.parametrize("count", [0, 1, 50])
    def test_predictions_do_not_depend_on_where_they_lie(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = context(pool=60, labeled=10)
        setup = type("Setup", (), {})()
        setup.bfloat16, setup.device, setup.augmentation = False, seen.device, type("A", (), {"plain": seen.normalize})
        monkeypatch.setattr(evaluation, "forward_batch", lambda _: 16)
        ask = partial(evaluation.predict, setup, seen.backbone, seen.module, seen.images, seen.unlabeled[:count])
        memory = ask()
        monkeypatch.setattr(storage, "MAPPED", 0)
        for kept, stored in zip(memory, ask(), strict=True):
            assert torch.equal(kept, stored)
        assert len(memory.embedding) == len(memory.predicted_loss) == count

    def test_a_network_may_learn_from_predictions(self) -> None:
        with torch.inference_mode():
            table = storage.Table(4)
            table.append(torch.ones(4, 3))
        layer = torch.nn.Linear(3, 1)
        layer(table.whole()).sum().backward()
        assert layer.weight.grad is not None

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_picks_do_not_depend_on_where_predictions_lie(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        seen, ask = context(), strategy(name)
        monkeypatch.setattr(storage, "MAPPED", 0)
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
