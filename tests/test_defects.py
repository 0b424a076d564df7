"""Known defects of public active-learning code: each has a test, here or as listed.

| defect | test |
|---|---|
| random with replacement, labeled images return | test_query: test_contract, test_the_contract_finds_what_is_broken |
| a baseline trained with another's loss | here |
| positions and indices mixed in a subset | test_query: test_a_random_subset_is_scored; test_learned: ..._chosen_from |
| augmented scoring, statistics moved while querying | here; test_query: test_contract |
| number of classes from hidden labels | here |
| hidden labels reach training or query | here; test_query: test_contract |
| budget not counted | here (no other label counts); test_run: test_a_run_leaves_every_file |
| full coverage, last rows of the pool (ProbCover) | test_diversity: ..._full_coverage_is_random, test_coverage_by_... |
| k-means without a seed | test_query: test_contract |
| seeds that depend on caches | here; test_run: test_every_method_runs_and_repeats_exactly |
| swallowed crashes, lost results | test_failures: ..._full_disk_..., ..._selects_twice...; test_sweeps |
| half precision without a scaler | here: weights stay in float32, and bfloat16 has its range |
| a fixed device | here |
| whole matrices of the pool | test_query: test_contract; test_linkage: test_memory_is_reckoned_and_measured |
| under 200 initial labels | test_run: test_unusual_budgets_...; test_pool: test_nothing_is_trimmed_under_... |
| an odd last batch | test_learn: test_ranking_drops_the_last_..., test_no_batch_has_a_single_image_... |
| no confident image | test_ssl: test_without_a_confident_image_the_term_is_exactly_zero_... |
| gray images in the cut-out | test_augment: test_cutout_is_pillows, test_strong_is_pillows |
| seed 0 ignored | here |
"""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from test_docs import ROOT
from test_identity import composed, config_of
from torch import Tensor

from sslpl.config.build import build_setup
from sslpl.learn.inference import predict
from sslpl.loop import initial_state, run_active_learning
from sslpl.phases.query import query_context
from sslpl.phases.train import train
from sslpl.pool import without
from sslpl.run.errors import CONF
from sslpl.runtime import Runtime
from sslpl.setup import Setup
from sslpl.state import State

QUIET = SimpleNamespace(on_phase_start=lambda *_: None, on_step=lambda *_: None, on_phase_end=lambda *_: None)


def setup_of(*overrides: str) -> Setup:
    return build_setup(config_of(*TINY, "training.precision=float32", *overrides)[0], Runtime(device="cpu"))


def finished(setup: Setup) -> State:
    return run_active_learning(setup, initial_state(setup), QUIET)


def weights(state: State) -> Tensor:
    return torch.cat([value.double().flatten() for value in state.backbone.state_dict().values()])


def after_joint_training(setup: Setup) -> State:
    state = initial_state(setup)
    for _ in train(setup, state):
        pass
    return state


def assert_same(first: State, second: State) -> None:
    assert torch.equal(first.ledger.index, second.ledger.index)
    assert torch.equal(first.ledger.score.nan_to_num(), second.ledger.score.nan_to_num())
    assert torch.equal(weights(first), weights(second))


def test_only_methods_that_use_a_module_train_one() -> None:
    chosen = {path.stem: OmegaConf.merge(*OmegaConf.load(path).defaults) for path in (CONF / "method").glob("*.yaml")}
    with_module = {method for method, groups in chosen.items() if groups["override /module"] != "none"}
    assert with_module == {"sslpm", "scal", "learning_loss", "ta_vaal"}
    assert {method for method, groups in chosen.items() if groups["override /ssl"] != "none"} == {"sslpm"}


@pytest.mark.parametrize(("method", "ranks"), [("random", False), ("entropy", False), ("learning_loss", True)])
def test_a_baseline_is_trained_without_a_ranking_loss(method: str, ranks: bool) -> None:
    light, heavy = (after_joint_training(setup_of(f"method={method}", f"training.ranking_weight={w}")) for w in (1, 9))
    assert (light.module is not None) == ranks
    assert torch.equal(weights(light), weights(heavy)) != ranks


@pytest.mark.parametrize("method", ["sslpm", "badge"])
def test_labels_that_were_not_asked_for_change_nothing(method: str) -> None:
    setup = setup_of(f"method={method}")
    first = finished(setup)
    labels = setup.dataset.train_labels.clone()
    labels[without(torch.arange(len(labels)), first.ledger.index)] = 0
    assert_same(first, finished(setup._replace(dataset=setup.dataset._replace(train_labels=labels))))


def test_a_query_is_shown_no_hidden_label() -> None:
    setup = setup_of("method=entropy")
    state = initial_state(setup)
    seen = query_context(setup, state)
    assert seen.truth is None
    assert torch.equal(seen.labels, setup.dataset.train_labels[seen.labeled])
    assert not set(seen.labeled.tolist()) & set(seen.unlabeled.tolist())
    with pytest.raises(PermissionError):
        seen.hidden_labels()


def test_classes_without_a_label_are_classes() -> None:
    few, many = (setup_of("method=random", f"budget.initial={count}") for count in (3, 64))
    first, second = initial_state(few), initial_state(many)
    assert len(set(few.dataset.train_labels[first.pool.labeled].tolist())) < 10
    assert torch.equal(weights(first), weights(second))
    seen = query_context(few, first)
    assert seen.num_classes == seen.predictions.logits.shape[1] == 10


def test_scoring_augments_nothing_and_moves_no_statistics() -> None:
    setup = setup_of("method=sslpm")
    state = after_joint_training(setup)
    before, index = weights(state), torch.arange(100)
    assert state.backbone.training
    known, again = (predict(setup, state.backbone, state.module, setup.dataset.train, index) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(known, again, strict=True))
    assert torch.equal(before, weights(state))
    assert state.backbone.training
    (images,) = setup.dataset.train.batches([index])
    with torch.no_grad():
        logits, maps, embedding = state.backbone.eval()(setup.augmentation.normalize(images))
        expected = (logits, embedding, state.module.eval()(maps))
    for ours, plain in zip(known[1:], expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_a_run_is_the_same_after_another() -> None:
    first = finished(setup_of("method=sslpm"))
    other = finished(setup_of("method=sslpm", "seed=1", "training.batch_size=10", "dataset.cutout=2"))
    assert not torch.equal(weights(first), weights(other))
    torch.manual_seed(7)
    assert_same(first, finished(setup_of("method=sslpm")))


def test_half_precision_keeps_weights_and_momentum_in_float32() -> None:
    state = after_joint_training(setup_of("method=sslpm", "training.precision=bfloat16"))
    assert state.module is not None
    parameters = [*state.backbone.parameters(), *state.module.parameters()]
    moments = [kept["momentum_buffer"] for kept in state.optimizer.state.values()]
    assert len(moments) == len(parameters)
    assert all(value.dtype == torch.float32 for value in (*parameters, *moments))
    assert any(bool((p != p.bfloat16()).any()) for p in parameters)


def test_no_source_names_a_device_index_or_forces_several() -> None:
    for path in (*(ROOT / "sslpl").rglob("*.py"), *CONF.rglob("*.yaml")):
        found = re.findall(r"cuda:0|device_ids|DataParallel|CUDA_VISIBLE_DEVICES\W+=|\.cuda\(", path.read_text())
        assert not found, f"{path}: {found}"


def test_seed_0_is_a_seed() -> None:
    assert composed("seed=0")[1]["id"] == composed()[1]["id"] != composed("seed=1")[1]["id"]
    starts = []
    for noise, seed in enumerate((0, 0, 1)):
        torch.manual_seed(noise)
        starts.append(initial_state(setup_of(f"seed={seed}")))
    first, same, other = starts
    assert_same(first, same)
    assert not torch.equal(weights(first), weights(other))
    assert first.pool.labeled.tolist() != other.pool.labeled.tolist()
