"""Options of short trainings: rates, flips, smoothing, Muon, test views, the minimum of steps."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from test_captured import setup_of
from test_identity import composed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslpl.data.augmentation import Augmentation
from sslpl.data.batches import alternating_flips
from sslpl.learn.joint_step import smoothed
from sslpl.learn.muon import MuonSGD, orthogonalized
from sslpl.learn.optimizers import joint_optimizer, weight_groups
from sslpl.learn.test_time_augmentation import averaged_logits, weighted_views
from sslpl.loop import initial_state
from sslpl.models.backbone import small_cnn
from sslpl.phases import train as phase
from sslpl.schedule import Schedule
from sslpl.seeds import rng
from sslpl.training import Training
from sslpl.types import Features

Command = Callable[..., Result]


def factors(training: Training, steps_per_epoch: int) -> list[float]:
    return [training.rate_factor(step, steps_per_epoch) for step in range(training.epochs * steps_per_epoch)]


@pytest.mark.parametrize("schedule", ["triangular", "one_cycle"])
@pytest.mark.parametrize("peak_at", [0.0, 0.25, 1.0])
def test_a_rate_rises_to_its_peak_and_falls(schedule: str, peak_at: float) -> None:
    values = factors(Training(epochs=5, rate_schedule=schedule, peak_at=peak_at), 20)  # type: ignore[arg-type]
    peak = round(peak_at * 101) - 1
    assert all(0 < value <= 1 for value in values)
    assert max(values) > 0.98  # the peak may lie between two steps
    assert all(before < after for before, after in pairwise(values[: peak + 1]))
    assert all(before > after for before, after in pairwise(values[peak + 1 :]))


def test_a_triangular_rate_is_linear_and_a_one_cycle_rate_half_a_cosine() -> None:
    triangular = factors(Training(epochs=3, rate_schedule="triangular", peak_at=0.5), 3)
    assert triangular == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2])
    cosine = factors(Training(epochs=3, rate_schedule="one_cycle", peak_at=0.5), 1)
    assert cosine == pytest.approx([0.5, 1, 0.5])


def test_the_published_rate_is_stepped_by_epochs() -> None:
    training = Training(epochs=5, decay_at=(0.8,))
    assert factors(training, 2) == [1] * 8 + [training.decay_factor] * 2


def test_alternating_flips_show_both_views_of_each_image_in_two_epochs() -> None:
    pool, index = 100, torch.randperm(100)[:60]
    views = {epoch: alternating_flips(index, pool, epoch, rng(0, "flips", 0)) for epoch in range(4)}
    assert torch.equal(views[0], ~views[1])
    assert torch.equal(views[0], views[2])
    assert 10 < int(views[0].sum()) < 50
    shuffled = index[torch.randperm(60)]
    by_image = dict(zip(index.tolist(), views[3].tolist(), strict=True))
    again = alternating_flips(shuffled, pool, 3, rng(0, "flips", 0))
    assert again.tolist() == [by_image[image] for image in shuffled.tolist()]


def test_a_run_flips_each_image_in_every_other_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of("method=random", "dataset.flip=true", "training.alternating_flips=true")
    state = initial_state(setup)
    drawn = []
    views = phase.weak_views
    monkeypatch.setattr(phase, "weak_views", lambda *a: (drawn.append((torch.cat(a[3]), a[4].flip)), views(*a))[1])
    for _ in phase.train(setup, state):
        pass
    first, second = (dict(zip(index.tolist(), flip.tolist(), strict=True)) for index, flip in drawn)
    assert first.keys() == second.keys()
    assert all(first[image] != second[image] for image in first)


def test_smoothing_is_torchs() -> None:
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    losses = cross_entropy(logits, labels, reduction="none")
    assert smoothed(losses, logits, 0.0) is losses
    expected = cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(smoothed(losses, logits, 0.2), expected)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_muon_orthogonalizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalized(matrix)
    singular = torch.linalg.svdvals(update)
    assert 0.3 < singular.min() <= singular.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ update @ vh.T  # the singular vectors stay
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=0, atol=1e-4)


def test_muon_trains_the_filters_alone_and_keeps_their_norm() -> None:
    torch.manual_seed(0)
    network = small_cnn(num_classes=3, in_channels=1)
    training = Training(muon_rate=0.1, nesterov=True)
    groups = weight_groups(training, network, nn.Linear(2, 1))
    assert [group.rate for group in groups] == [0.1, 0.05, 0.1]
    assert [group.muon for group in groups] == [False, False, True]
    assert {tuple(weight.shape) for weight in groups[-1].weights} == {
        tuple(weight.shape) for weight in network.parameters() if weight.ndim == 4
    }
    plain = [{"params": group.weights, "lr": group.rate, "muon": group.muon} for group in groups]
    optimizer = MuonSGD(plain, momentum=0.9, nesterov=True)
    norms = [weight.norm().item() for weight in groups[-1].weights]
    images, labels = torch.randn(30, 1, 8, 8), torch.arange(30) % 3
    losses = []
    for _ in range(20):
        loss = cross_entropy(network(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert [weight.norm().item() for weight in groups[-1].weights] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(("batch_size", "rate"), [(16, 0.1), (64, 0.4)])
def test_decay_per_image_does_not_depend_on_batch_size_and_rate(batch_size: int, rate: float) -> None:
    setup = setup_of("method=random", f"training.batch_size={batch_size}", f"training.rate={rate}",
                     "training.decay_per_image=1e-4", "training.momentum=0")  # fmt: skip
    state = initial_state(setup)
    optimizer = joint_optimizer(setup, state)
    weight = state.backbone.head.weight  # type: ignore[union-attr]
    before = weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = rate
        for part in group["params"]:
            part.grad = torch.zeros_like(part)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), (1 - 1e-4 * batch_size) * before)


def mean_and_offset(images: Tensor) -> Features:
    """A network whose logits are the image's first pixel and its mean."""
    logits = torch.stack([images[:, 0, 0, 0], images.mean(dim=(1, 2, 3))], dim=1)
    return Features(logits, (), logits)


def test_test_views_by_hand() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    augmentation = Augmentation((1, 3, 3), (0.0,), (1.0,), flip=True, padding=1, cutout=0)
    logits = partial(averaged_logits, mean_and_offset, image)
    torch.testing.assert_close(logits("none", augmentation), torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(logits("mirror", augmentation)[:, 0], torch.tensor([(0 + 2) / 2.0]))
    # The first pixel after a shift down and to the right is the repeated corner 0, after the opposite one the 4; that
    # of their mirror images is 1 and 5, since the shifted rows begin 0 0 1 and 4 5 5.
    expected = (0 + 2) / 4 + (0 + 1) / 8 + (4 + 5) / 8
    torch.testing.assert_close(logits("mirror_and_shift", augmentation)[:, 0], torch.tensor([expected]))


@pytest.mark.parametrize(("flip", "padding", "count"), [(True, 1, 6), (False, 1, 3), (True, 0, 2), (False, 0, 1)])
def test_test_images_are_seen_only_as_they_are_trained_on(flip: bool, padding: int, count: int) -> None:
    augmentation = Augmentation((1, 4, 4), (0.0,), (1.0,), flip=flip, padding=padding, cutout=0)
    views = weighted_views(torch.zeros(2, 1, 4, 4), "mirror_and_shift", augmentation)
    assert len(views) == count
    assert sum(weight for weight, _ in views) == pytest.approx(1)


def test_few_images_are_trained_on_for_more_epochs() -> None:
    schedule = Schedule(3, Training(epochs=8, min_steps=100, batch_size=10, finetune_epochs=2), has_module=True)
    assert [schedule.epochs("train", images) for images in (5, 10, 35, 125, 1000)] == [100, 100, 25, 8, 8]
    assert [schedule.epochs(name, 5) for name in ("finetune", "query")] == [2, 1]
    steps = [
        schedule.tracker_step(cycle, name, epoch)
        for cycle in range(2)
        for name in ("train", "finetune")
        for epoch in range(1, schedule.epochs(name, 5) + 1)
    ]
    assert steps == sorted(set(steps))
    assert Schedule(1, Training(), True).epochs("train", 5) == 200


FAST = (*TINY, "training=fast", "training.epochs=2", "training.min_steps=6", "dataset.flip=true", "backbone.width=4",
        "backbone=fast_cnn", "budget.cycles=2", "training.muon_rate=0.1")  # fmt: skip


def test_a_killed_fast_training_resumes_with_the_same_result(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sslpl(*FAST, "runtime.output_dir=whole").code == 0
    steps = iter(range(100))
    step = phase.joint_step

    def dying(*arguments: object, **options: object) -> Tensor:
        if next(steps) == 4:
            raise Killed
        return step(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(phase, "joint_step", dying)
    with pytest.raises(Killed):
        sslpl(*FAST, "runtime.output_dir=parts", "runtime.checkpoint_minutes=0")
    monkeypatch.setattr(phase, "joint_step", step)
    assert sslpl(*FAST, "runtime.output_dir=parts").code == 0
    whole, parts = run_folder(Path("whole")), run_folder(Path("parts"))
    assert timeless(whole) == timeless(parts)
    saved = [
        torch.load(folder / "checkpoint" / "weights.pt", weights_only=True)["backbone"] for folder in (whole, parts)
    ]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


@pytest.mark.parametrize(
    "override",
    [
        "min_steps=300", "nesterov=true", "muon_rate=0.1", "decay_per_image=1e-6", "label_smoothing=0.1",
        "rate_schedule=one_cycle", "alternating_flips=true", "test_time_augmentation=mirror",
        "precise_batch_norm=true", "finetune_clip=1",
    ],
)  # fmt: skip
def test_each_option_makes_another_run(override: str) -> None:
    assert composed(f"training.{override}")[1]["id"] != composed()[1]["id"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["training.nesterov=true", "training.momentum=0"], "training.nesterov=true"),
        (["training=head", "backbone=linear", "training.label_smoothing=0.1"], "training.label_smoothing=0.1"),
        (["training=head", "backbone=linear", "training.min_steps=5"], "training.min_steps=5"),
    ],
)
def test_options_without_an_effect_are_refused(sslpl: Command, overrides: list[str], line: str) -> None:
    done = sslpl(*TINY, "method=random", *overrides)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert line in done.err
