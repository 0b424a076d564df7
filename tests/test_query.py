"""The contract of query strategies, and strategies on small hand-computed inputs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import CHECKS, contract
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from querying import context, predicting
from test_docs import code
from torch import Generator

from sslpl.query.scorers import entropy
from sslpl.query.selection import ranked, select_rows
from sslpl.query.selective_clustering import selective_clustering
from sslpl.run.errors import CONF
from sslpl.types import QueryContext, QueryStrategy, Selection

STRATEGIES = sorted(path.stem for path in (CONF / "query").glob("*.yaml"))
SHORT = {  # what the contract asks of a strategy that takes many steps, it asks of a few too
    "vaal": ("query.steps=2", "query.batch_size=8"),
    "ta_vaal": ("query.steps=2", "query.batch_size=8"),
    "uncertain_gcn": ("query.steps=3",),
    "core_gcn": ("query.steps=3",),
    "refine": ("query.depth=2", "query.batches=7"),
    "refine_expected_loss": ("query.depth=2", "query.batches=7"),
    "consistency": ("query.scorer.views=2",),
    "boss": ("query.batches=4",),
    "bait": ("query.subset=40",),
}


@cache
def strategy(name: str, folder: Path | None = None) -> QueryStrategy:
    """Returns a strategy of conf/query or of another folder of configs."""
    GlobalHydra.instance().clear()
    beside = [] if folder is None else [f"hydra.searchpath=[file://{folder.resolve()}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", overrides=[*beside, f"query={name}", *SHORT.get(name, ())]).query)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes the contract test by all strategies, also of the folder of `--strategies`."""
    if "asked" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--strategies")
        outside = [] if folder is None else sorted(path.stem for path in folder.glob("query/*.yaml"))
        asked = [(name, None) for name in STRATEGIES] + [(name, folder) for name in outside]
        metafunc.parametrize("asked", asked, ids=[name for name, _ in asked])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(asked: tuple[str, Path | None], check: Callable[[QueryStrategy], None]) -> None:
    check(strategy(*asked))


def test_the_strategy_of_the_guide_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strategies.py").write_text(code("docs/contribute.md", "python")[0])
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "lowest_logit.yaml").write_text(code("docs/contribute.md", "yaml")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    contract(strategy("lowest_logit", tmp_path))


def taking(rows: torch.Tensor, context: QueryContext) -> Selection:
    return select_rows(context, rows)


def with_replacement(context: QueryContext, n: int, rng: Generator) -> Selection:
    return taking(torch.randint(len(context.unlabeled), (n,), generator=rng), context)


def labeled_return(context: QueryContext, n: int, rng: Generator) -> Selection:
    whole = torch.cat([context.labeled, context.unlabeled])
    index = whole[torch.randperm(len(whole), generator=rng)[:n]]
    return Selection(index, torch.zeros(n, dtype=torch.float64))


def unseeded(context: QueryContext, n: int, rng: Generator) -> Selection:
    return taking(torch.randperm(len(context.unlabeled))[:n], context)


def the_first(context: QueryContext, n: int, rng: Generator) -> Selection:
    return taking(torch.arange(n), context)


def in_train_mode(context: QueryContext, n: int, rng: Generator) -> Selection:
    context.backbone.train()(torch.rand(4, 1, 8, 8, generator=rng))
    context.backbone.eval()
    return taking(torch.randperm(len(context.unlabeled), generator=rng)[:n], context)


def in_place(context: QueryContext, n: int, rng: Generator) -> Selection:
    context.predictions.logits.sub_(1)
    return taking(torch.randperm(len(context.unlabeled), generator=rng)[:n], context)


def by_numpys_seed(context: QueryContext, n: int, rng: Generator) -> Selection:
    np.random.seed(0)  # noqa: NPY002
    return taking(torch.from_numpy(np.random.permutation(len(context.unlabeled)))[:n], context)  # noqa: NPY002


def peeking(context: QueryContext, n: int, rng: Generator) -> Selection:
    return taking(ranked(context.hidden_labels(), rng)[:n], context)


def all_pairs(context: QueryContext, n: int, rng: Generator) -> Selection:
    embedding = context.predictions.embedding
    return taking(ranked(torch.cdist(embedding, embedding).mean(dim=1), rng)[:n], context)


def all_pairs_by_scipy(context: QueryContext, n: int, rng: Generator) -> Selection:
    from scipy.spatial.distance import pdist

    pdist(context.predictions.embedding.numpy())
    return taking(torch.randperm(len(context.unlabeled), generator=rng)[:n], context)


BROKEN = {  # and the check that finds it
    with_replacement: "selects_n_distinct_unlabeled_images",
    labeled_return: "selects_n_distinct_unlabeled_images",
    unseeded: "is_deterministic_for_a_seed",
    the_first: "breaks_ties_by_the_generator",
    in_train_mode: "changes_nothing_but_its_generator",
    in_place: "changes_nothing_but_its_generator",
    by_numpys_seed: "changes_nothing_but_its_generator",
    peeking: "uses_no_hidden_label",
    all_pairs: "allocates_no_matrix_of_the_pool",
    all_pairs_by_scipy: "allocates_no_matrix_of_the_pool",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_the_contract_finds_what_is_broken(broken: QueryStrategy) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == BROKEN[broken]]
    with pytest.raises((AssertionError, PermissionError)):
        check(broken)


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


def test_a_restricted_context_predicts_nothing_again() -> None:
    seen = context(pool=90, labeled=20)
    whole, labeled = seen.predictions, seen.labeled_predictions
    part = seen.restricted_to(seen.unlabeled[::3].clone())
    assert part.labeled_predictions is labeled
    assert torch.equal(part.predictions.logits, whole.logits[::3])
    again = part.restricted_to(part.unlabeled[1:3])
    assert torch.equal(again.predictions.index, seen.unlabeled[[3, 6]])
    assert torch.equal(again.predictions.embedding, whole.embedding[[3, 6]])
