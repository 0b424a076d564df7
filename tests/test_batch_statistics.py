"""Batch norm statistics that are estimated anew before a network is evaluated or frozen."""

import copy

import pytest
import torch
from test_captured import setup_of
from torch import Tensor, nn

from sslpl.learn import batch_statistics
from sslpl.learn.batch_statistics import estimate_statistics
from sslpl.loop import initial_state
from sslpl.phases import finetune
from sslpl.phases.train import train
from sslpl.setup import Setup
from sslpl.state import State, weights_of

PRECISE = ("training.precise_batch_norm=true", "training.precision=float32", "budget.initial=48")


def trained(*overrides: str) -> tuple[Setup, State]:
    setup = setup_of(*overrides)
    state = initial_state(setup)
    for _ in train(setup, state):
        pass
    return setup, state


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def test_the_statistics_are_those_of_the_labeled_images_under_the_final_weights() -> None:
    setup, state = trained(*PRECISE)
    images = next(iter(setup.dataset.train.batches([state.train_index])))  # few enough for a single batch
    inputs: list[Tensor] = []
    first = copy.deepcopy(state.backbone)
    handle = norms(first)[1].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    first.train()(setup.augmentation.normalize(images))
    handle.remove()
    found = norms(state.backbone)[1]
    torch.testing.assert_close(found.running_mean, inputs[0].mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found.running_var, inputs[0].var(dim=(0, 2, 3), correction=1))
    assert (found.momentum, found.training) == (0.1, True)


def test_several_batches_count_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, state = trained(*PRECISE)
    monkeypatch.setattr(batch_statistics, "inference_batch_size", lambda *_: 16)
    batches = batch_statistics.statistics_batches(setup, state)
    assert [len(batch) for batch in batches] == [16, 16, 16]
    assert sorted(torch.cat(batches).tolist()) == sorted(state.train_index.tolist())
    norm = norms(state.backbone)[0]
    estimate_statistics(setup, state, state.backbone)
    convolution = state.backbone.stages[0][0][0]  # type: ignore[union-attr]
    with torch.no_grad():
        means = [
            convolution(setup.augmentation.normalize(images)).mean(dim=(0, 2, 3))  # type: ignore[operator]
            for images in setup.dataset.train.batches(batches)
        ]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))


def test_weights_are_the_same_with_and_without_it() -> None:
    (_, plain), (_, precise) = trained(*PRECISE[1:]), trained(*PRECISE)
    assert all(map(torch.equal, plain.backbone.parameters(), precise.backbone.parameters()))
    assert not torch.equal(norms(plain.backbone)[-1].running_mean, norms(precise.backbone)[-1].running_mean)


def test_frozen_backbones_keep_their_statistics_and_a_single_image_has_none() -> None:
    setup, state = trained(*PRECISE, "backbone.freeze=true", "training.augment=true")
    assert all(torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms(state.backbone))
    setup, state = trained(*PRECISE, "budget.initial=1", "method=random")
    before = weights_of(state.backbone)
    estimate_statistics(setup, state, state.backbone)
    assert all(torch.equal(before[name], value) for name, value in state.backbone.state_dict().items())


def test_snapshots_and_teachers_have_their_own_estimates() -> None:
    setup, state = trained(*PRECISE, "ssl=mean_teacher", "query/scorer=query_by_committee", "query.scorer.snapshots=2")
    for weights in (*state.snapshots, state.teacher):
        assert weights is not None
        network = copy.deepcopy(state.backbone)
        network.load_state_dict(weights)
        estimate_statistics(setup, state, network)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, weights[name])
    assert torch.equal(state.snapshots[-1]["head.weight"], state.backbone.state_dict()["head.weight"])


def test_a_task_method_counts_the_unlabeled_images_too() -> None:
    setup, state = trained(*PRECISE, "task_ssl=fixmatch", "method=random")
    sizes = [len(batch) for batch in batch_statistics.statistics_batches(setup, state)]
    assert sum(sizes) == min(batch_statistics.IMAGES, len(setup.dataset.train))
    assert max(sizes) - min(sizes) <= 1


def test_a_clipped_fine_tune_takes_small_steps() -> None:
    moved = {}
    for clip in ("null", "1e-3"):
        setup, state = trained(*PRECISE, f"training.finetune_clip={clip}", "training.weight_decay=0")
        assert state.module is not None
        before = weights_of(state.module)
        state.enter("finetune")
        for _ in finetune.finetune(setup, state):
            pass
        moved[clip] = sum(float((value - before[name]).norm()) for name, value in state.module.state_dict().items())
    assert 0 < moved["1e-3"] < 0.1 * moved["null"]
