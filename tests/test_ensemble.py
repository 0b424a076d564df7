"""Ensembles of separately trained networks: their scores, their members, and a run that is killed between members."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import TINY, Result, run_folder
from hydra.utils import instantiate
from querying import context
from test_identity import config_of

from sslpl.config.build import build_setup
from sslpl.loop import advance, initial_state
from sslpl.phases.ensemble import member_setup, new_member, train_ensemble
from sslpl.phases.train import train
from sslpl.query import ensemble, query_by_committee
from sslpl.run import estimate
from sslpl.setup import Setup
from sslpl.state import State, Weights
from sslpl.types import Predictions

Command = Callable[..., Result]
ENSEMBLE = (*TINY, "method=ensemble", "query.scorer.members=3", "training.epochs=1", "backbone.dropout=0.1")


def setup_of(*overrides: str) -> Setup:
    config = config_of(*ENSEMBLE, *overrides)[0]
    return build_setup(config, instantiate(config["runtime"]))


def after_training(setup: Setup) -> State:
    state = initial_state(setup)
    list(train(setup, state))
    advance(setup, state)
    assert state.phase == "ensemble"
    return state


def equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_variation_ratio_by_hand() -> None:
    table = torch.randn(5, 60, 3, generator=torch.Generator().manual_seed(0))  # logits of five members
    seen = replace(
        context(),
        snapshots=[{"member": torch.tensor(k)} for k in range(5)],
        predict=lambda weights, index: Predictions(index, table[weights["member"], index], table[0, index], None),
    )
    votes = [member.logits.argmax(dim=1).tolist() for member in seen.committee]
    counts = [Counter(image).most_common(1)[0][1] for image in zip(*votes, strict=True)]
    rng = torch.Generator()
    assert ensemble(seen, rng).tolist() == pytest.approx([1 - count / len(votes) for count in counts])
    assert set(counts) == {2, 3, 4}
    same = ensemble(seen, rng, disagreement="consensus_kl"), query_by_committee(seen, rng, disagreement="consensus_kl")
    assert torch.equal(*same)


def test_each_member_is_trained_as_a_backbone_of_its_own_seed() -> None:
    setup = setup_of()
    state = after_training(setup)
    backbone = {name: value.clone() for name, value in state.backbone.state_dict().items()}
    list(train_ensemble(setup, state))
    assert len(state.snapshots) == 3
    assert not any(equal(state.snapshots[a], state.snapshots[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert equal(backbone, state.snapshots[0])
    assert equal(backbone, state.backbone.state_dict())  # which is tested
    alone = new_member(setup, after_training(setup), 2)
    begun = {name: value.clone() for name, value in alone.backbone.state_dict().items()}
    list(train(member_setup(setup, 2), alone))
    assert equal(alone.backbone.state_dict(), state.snapshots[2])
    state.cycle = 1
    assert equal(new_member(setup, state, 2).backbone.state_dict(), state.snapshots[2])  # a warm start
    fresh = setup_of("training.warm_start=false")
    assert not equal(new_member(fresh, state, 2).backbone.state_dict(), state.snapshots[2])
    assert not equal(new_member(fresh, state, 2).backbone.state_dict(), begun)  # drawn for the cycle


def test_members_go_on_from_their_raw_weights_and_are_asked_with_averaged_ones() -> None:
    setup = setup_of("task_ssl=fixmatch", "task_ssl.ratio=2")
    state = after_training(setup)
    list(train_ensemble(setup, state))
    assert not equal(state.members[0], state.snapshots[1])
    assert equal(new_member(setup, state, 1).backbone.state_dict(), state.members[0])


def test_a_resumed_run_trains_its_current_member_anew() -> None:
    setup = setup_of()
    whole, killed = after_training(setup), after_training(setup)
    images = [step.images for step in train_ensemble(setup, whole)]
    assert images == [16, 8, 16, 8]  # two batches for each of two members
    for k, _ in enumerate(train_ensemble(setup, killed)):
        if k == 2:  # in the training of the second of them
            break
    assert (killed.epoch, len(killed.snapshots), len(killed.members)) == (1, 2, 1)
    resumed = initial_state(setup)
    resumed.load(copy.deepcopy(killed.to_dict()))
    assert len(list(train_ensemble(setup, resumed))) == 2
    assert len(resumed.snapshots) == 3
    for ours, theirs in zip(resumed.snapshots + resumed.members, whole.snapshots + whole.members, strict=True):
        assert equal(ours, theirs)


def test_a_run_trains_the_ensemble_in_all_cycles_but_the_last(sslpl: Command) -> None:
    done = sslpl(*ENSEMBLE, "budget.cycles=2", "runtime.progress=plain")
    assert done.code == 0, done.err
    assert done.out.count("ensemble") == 2, done.out
    scores = {round(float(line.split(",")[3]), 4) for line in (run_folder() / "queries.csv").read_text().split()[25:]}
    assert scores <= {0.0, 0.3333, 0.6667}


def test_a_dry_run_counts_every_training(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measured_speeds", lambda _: (1.0, 0.0))  # a second for each image
    done = sslpl(*ENSEMBLE, "budget.cycles=2", "runtime.dry_run=true")
    assert "estimated time 2m 00s" in done.out  # three times 24 images, and once 48
