"""Methods of semi-supervised joint training that read the labeled batch: their published formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_task_ssl import NEW, REFERENCE, method_of
from torch import Tensor

from sslpl.ssl import remixmatch
from sslpl.ssl.comatch import CoMatchCriterion, neighbor_graph
from sslpl.ssl.dash import DashCriterion
from sslpl.ssl.simmatch import SimMatchCriterion
from sslpl.ssl.task_method import Criterion, LabeledOutputs, Outputs, TaskData, TaskOutputs

with np.load(Path(__file__).parent / "data" / "task_ssl" / "labeled.npz") as file:
    LABELED = {key: torch.from_numpy(file[key]) for key in file.files}
STEPS = len(REFERENCE["weak"])
DATA = TaskData(LABELED["all_labels"], REFERENCE["frequency"], 28, width=9, batch_size=8, unlabeled_batch_size=24)


def step_outputs(step: int, second_view: bool) -> TaskOutputs:
    """Returns the reference's inputs of a step, all of which require a gradient."""
    pairs = {
        view: (values[view][step].clone().requires_grad_(), LABELED[f"{view}_projected"][step].clone().requires_grad_())
        for values, views in ((REFERENCE, ("weak", "strong")), (LABELED, ("labeled", "second")))
        for view in views
    }
    views = ("weak", "strong", "second") if second_view else ("weak", "strong")
    labeled = LabeledOutputs(Outputs(*pairs["labeled"]), LABELED["labels"][step], LABELED["labeled_index"][step])
    return TaskOutputs(
        tuple(Outputs(*pairs[view]) for view in views), REFERENCE["index"][step], step, STEPS, labeled=labeled
    )


@pytest.mark.parametrize(
    ("case", "changed"),
    [
        ("adamatch", {"momentum": 0.7}),
        ("dash", {"decay": 2.5, "decay_every": 2 / STEPS, "lowest": 0.1, "warm_up": 0.0}),
        ("comatch", {"threshold": 0.6, "memory": 2, "align_batches": 3, "dimensions": 6}),
        ("simmatch", {"threshold": 0.6, "bank_momentum": 0.0, "align_batches": 3, "dimensions": 6}),
    ],
)
def test_losses_are_those_of_the_published_code(case: str, changed: dict[str, object]) -> None:
    criterion = method_of(case, **changed).criterion(DATA)
    weights = LABELED[f"{case}_weight"]
    for step in range(STEPS):
        loss = criterion(step_outputs(step, second_view=case == "comatch"))
        torch.testing.assert_close(loss.weight, weights[step])
        torch.testing.assert_close(loss.target, LABELED[f"{case}_target"][step], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.pseudo, LABELED[f"{case}_loss"][step], rtol=1e-4, atol=1e-5)
        if f"{case}_auxiliary" in LABELED:
            torch.testing.assert_close(loss.auxiliary, LABELED[f"{case}_auxiliary"][step], rtol=1e-4, atol=1e-5)
        assert loss.supervised is None
    assert 0 < weights.mean() < 1


def remixmatch_outputs(step: int, criterion: Criterion) -> TaskOutputs:
    """Returns the reference's inputs of a step: a linear network forwards the images."""
    images = [LABELED[f"remixmatch_{view}_images"][step] for view in ("labeled", "weak", "strong", "second")]
    head = LABELED["remixmatch_head"]

    def forward(batch: Tensor) -> Outputs:
        assert criterion.head is not None
        return Outputs(batch.flatten(1) @ head.T, criterion.head(batch.flatten(1)))

    labeled, *views = [forward(batch) for batch in images[:3]]
    labeled_outputs = LabeledOutputs(labeled, LABELED["labels"][step], LABELED["labeled_index"][step])
    rng = torch.Generator().manual_seed(step)
    return TaskOutputs(
        tuple(views), torch.arange(8), step, STEPS, labeled_outputs, images=tuple(images), forward=forward, rng=rng
    )


def test_the_losses_of_remixmatch_are_those_of_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of("remixmatch", momentum=0.7, ramp_up=0.5)
    criterion = method.criterion(DATA)
    with torch.no_grad():
        criterion.head.weight.copy_(LABELED["remixmatch_rotation_head"])
        criterion.head.bias.zero_()
    for step in range(STEPS):
        draws = [LABELED[f"remixmatch_{name}"][step] for name in ("shares", "others", "turns")]
        monkeypatch.setattr(
            remixmatch, "draw_mixture", lambda *_, draws=draws: remixmatch.MixDraws(draws[0].item(), *draws[1:])
        )
        loss = criterion(remixmatch_outputs(step, criterion))
        total = loss.supervised + method.weight_at(step, STEPS) * loss.pseudo + loss.auxiliary
        found = {"loss": loss.pseudo, "supervised": loss.supervised, "target": loss.target, "total": total}
        for name, value in found.items():
            torch.testing.assert_close(value, LABELED[f"remixmatch_{name}"][step], rtol=1e-4, atol=1e-5)
        assert loss.weight.tolist() == [1] * 8


def test_the_values_are_the_published_ones() -> None:
    """Those of USB's configs for CIFAR."""
    shares = {"decay_every": 10 / 1024, "warm_up": 2048 / 2**20}
    own = {
        "adamatch": {"threshold": 0.95, "momentum": 0.999},
        "dash": {"temperature": 0.5, "decay": 1.27, "scale": 1.0001, "lowest": 0.05, **shares},
        "comatch": {
            **{"threshold": 0.95, "temperature": 0.2, "smoothing": 0.9, "memory": 5, "align_batches": 32},
            **{"dimensions": 64, "contrast_threshold": 0.8, "contrast_weight": 1.0},
        },
        "simmatch": {
            **{"threshold": 0.95, "temperature": 0.1, "smoothing": 0.9, "align_batches": 32, "dimensions": 128},
            **{"bank_momentum": 0.7, "instance_weight": 1.0},
        },
        "remixmatch": {
            **{"ratio": 1, "weight": 1.5, "ramp_up": 1 / 64, "temperature": 0.5, "alpha": 0.75},
            **{"strong_weight": 0.5, "rotation_weight": 0.5, "momentum": 0.999},
        },
    }
    for option in NEW:
        values = {"ratio": 7, "weight": 1.0, "ramp_up": 0.0, "average": 0.999} | own[option]
        assert vars(method_of(option)) == values
        assert vars(type(method_of(option))()) == values  # of the class too


def test_no_gradient_reaches_pseudo_labels_and_labeled_images() -> None:
    for option in ("adamatch", "dash", "comatch", "simmatch"):
        changed = {"dimensions": 6} if option in ("comatch", "simmatch") else {}
        outputs = step_outputs(0, second_view=option == "comatch")
        loss = method_of(option, **changed).criterion(DATA)(outputs)
        if (loss.pseudo + loss.auxiliary).requires_grad:
            (loss.pseudo + loss.auxiliary).backward()
        assert outputs.labeled is not None
        for part in (outputs.views[0], outputs.labeled.outputs):
            assert all(value is not None and value.grad is None for value in part)
        assert outputs.views[1].logits.grad is not None


def test_dash_starts_with_the_labeled_loss_after_the_warm_up() -> None:
    method = method_of("dash", warm_up=0.25, decay_every=0.5, decay=2.0)
    criterion = method.criterion(DATA)
    assert isinstance(criterion, DashCriterion)
    assert [method.weight_at(step, STEPS) for step in (0, 2, 3, 11)] == [0, 0, 1, 1]
    assert not criterion(step_outputs(2, second_view=False)).weight.any()
    expected = torch.nn.functional.cross_entropy(LABELED["labeled"][3], LABELED["labels"][3])
    thresholds = [criterion.threshold(step_outputs(step, second_view=False)).item() for step in (3, 8, 9, 11)]
    assert thresholds == pytest.approx([1.0001 * expected.item() / 2**k for k in (0, 0, 1, 1)])


def test_comatch_remembers_the_latest_batches_only() -> None:
    criterion = method_of("comatch", memory=2, dimensions=6).criterion(DATA)
    assert isinstance(criterion, CoMatchCriterion)
    for step in range(3):
        assert bool(criterion.remembered >= len(criterion.memory)) == (step == 2)
        criterion(step_outputs(step, second_view=True))
    rows = [LABELED[f"{view}_projected"][step] for step in (2, 1) for view in ("weak", "labeled")]
    torch.testing.assert_close(criterion.memory, torch.cat(rows))
    one_hot = torch.nn.functional.one_hot(LABELED["labels"][2], 5).float()
    torch.testing.assert_close(criterion.beliefs[24:32], one_hot)


def test_a_partial_batch_fills_the_memory_of_comatch_around_its_end() -> None:
    data = DATA._replace(batch_size=1, unlabeled_batch_size=3)
    criterion = method_of("comatch", memory=2, dimensions=2).criterion(data)
    assert isinstance(criterion, CoMatchCriterion)
    for value, count in ((1.0, 4), (2.0, 2), (3.0, 4)):
        criterion.remember(torch.full((count, 2), value), torch.full((count, 5), value))
    assert criterion.memory[:, 0].tolist() == [3, 3, 1, 1, 2, 2, 3, 3]


def test_neighbors_by_hand() -> None:
    target = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    expected = torch.tensor([[1 / 1.9, 0.9 / 1.9, 0], [0.9 / 1.9, 1 / 1.9, 0], [0, 0, 1]])
    torch.testing.assert_close(neighbor_graph(target, 0.8), expected)


def test_the_bank_of_simmatch_averages_unit_vectors() -> None:
    criterion = method_of("simmatch", dimensions=6).criterion(DATA)
    assert isinstance(criterion, SimMatchCriterion)
    bank = torch.zeros(16, 6)
    for step in range(STEPS):
        outputs = step_outputs(step, second_view=False)
        loss = criterion(outputs)
        assert bool(loss.auxiliary > 0) == (step >= 2)  # each of 16 images has been in one of two batches of 8
        for row, new in zip(LABELED["labeled_index"][step].tolist(), LABELED["labeled_projected"][step], strict=True):
            average = 0.7 * bank[row] + 0.3 * new if step >= 2 else new
            bank[row] = average / average.norm()
        torch.testing.assert_close(criterion.bank, bank)


def test_mixtures_keep_half_of_an_image_and_rotations_turn_it() -> None:
    rng, images = torch.Generator().manual_seed(0), torch.arange(12.0).view(3, 1, 2, 2)
    for _ in range(20):
        draws = remixmatch.draw_mixture(3, 2, 0.75, rng)
        assert 0.5 <= draws.share <= 1
        assert sorted(draws.other.tolist()) == [0, 1, 2]
    whole = remixmatch.mixed(images, draws)
    torch.testing.assert_close(whole[1], draws.share * images[1] + (1 - draws.share) * images[draws.other[1]])
    turned = remixmatch.rotated(images, torch.tensor([0, 1, 2]))
    assert turned[:, 0].tolist() == [[[0, 1], [2, 3]], [[5, 7], [4, 6]], [[11, 10], [9, 8]]]
