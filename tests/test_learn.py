import math

import pytest
import torch
from torch import nn

from sslpl import ranking
from sslpl.calibration import calibration_error
from sslpl.data import batches as batching
from sslpl.data.augmentation import Augmentation, take_draws
from sslpl.data.batches import augment_in_parts, epoch_batches, group_batches, split_batches, unlabeled_batch_size
from sslpl.learn.frozen_losses import ranked_rows
from sslpl.learn.sums import FinetuneSums, pseudo_label_quality
from sslpl.learn.unlabeled_batches import frozen_statistics
from sslpl.models.backbone import small_cnn
from sslpl.models.conv_norm import ConvNorm
from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.models.loss_prediction import LossPredictionModule, tap_matrix, tap_means
from sslpl.models.resnet import resnet18
from sslpl.seeds import rng
from sslpl.ssl.rules import confident_rows, pseudo_label_hard, pseudo_label_soft
from sslpl.training import Training


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
def test_ranking_by_hand(loss: object) -> None:
    predicted = torch.tensor([1.0, 0.0, 0.5, -1.0], requires_grad=True)
    target = torch.tensor([3.0, 2.0, 1.0, 0.0])  # pairs (0, 3) with gap 2 and (1, 2) with gap -0.5
    expected = {
        ranking.bce_ranking_loss: (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(0.5))) / 2,
        ranking.margin_ranking_loss: (0.0 + 1.5) / 2,
    }[loss]
    assert loss(predicted, target).item() == pytest.approx(expected)  # type: ignore[operator]


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
@pytest.mark.parametrize("size", [0, 1])
def test_ranking_without_a_pair_is_zero_and_moves_nothing(loss: object, size: int) -> None:
    predicted = torch.ones(size, requires_grad=True)
    value = loss(predicted, torch.ones(size))  # type: ignore[operator]
    value.backward()
    assert value.item() == 0
    assert predicted.grad is not None
    assert not predicted.grad.any()


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
def test_ranking_drops_the_last_of_an_odd_batch_and_no_gradient_reaches_the_loss(loss: object) -> None:
    predicted, target = torch.randn(7), torch.randn(7, requires_grad=True)
    odd = loss(predicted.requires_grad_(True), target)  # type: ignore[operator]
    assert odd == loss(predicted[:6], target[:6])  # type: ignore[operator]
    odd.backward()
    assert target.grad is None


def test_pseudo_labels_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.95, 0.05], [0.6, 0.4], [0.1, 0.9]]))
    soft, weight = pseudo_label_soft(logits, threshold=0.89)
    assert weight.tolist() == [1, 0, 1]
    torch.testing.assert_close(soft, logits.exp())
    assert pseudo_label_hard(logits, threshold=0.89).target.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_confident_rows_of_each_batch_of_a_group() -> None:
    weight = torch.tensor([0.0, 1, 1, 1, 1, 0, 1])
    assert confident_rows(weight).tolist() == [1, 2, 3, 4]
    assert [rows.tolist() for rows in ranked_rows(weight, [4, 3])] == [[1, 2], [4, 6]]


def test_pseudo_label_quality_counts() -> None:
    assert pseudo_label_quality(FinetuneSums(*torch.tensor([0, 0, 0, 8.0, 6, 16]).tolist())) == {
        "pseudo_label_rate": 0.5, "pseudo_label_accuracy": 0.75,
    }  # fmt: skip
    none = pseudo_label_quality(FinetuneSums(*torch.zeros(6).tolist()))
    assert none == {"pseudo_label_rate": None, "pseudo_label_accuracy": None}


@pytest.mark.parametrize(
    ("images", "size", "lengths"),
    [(0, 4, [0]), (1, 4, [1]), (4, 4, [4]), (5, 4, [5]), (6, 4, [4, 2]), (9, 4, [4, 5]), (3, 1, [1, 1, 1])],
)
def test_no_batch_has_a_single_image_unless_all_have(images: int, size: int, lengths: list[int]) -> None:
    batches = split_batches(torch.arange(images), size)
    assert [len(batch) for batch in batches] == lengths
    assert torch.cat(batches).tolist() == list(range(images))


def test_an_epoch_sees_every_image_once() -> None:
    index = torch.tensor([5, 2, 9, 7, 1])
    batches = epoch_batches(index, 10, 2, rng(0, "order"))
    assert sorted(torch.cat(batches).tolist()) == [1, 2, 5, 7, 9]


@pytest.mark.parametrize(
    ("unlabeled", "labeled", "size"), [(0, 10, 0), (1, 10, 0), (2, 10, 0), (5, 10, 2), (9999, 1, 1536)]
)
def test_unlabeled_batches_are_even_and_limited(unlabeled: int, labeled: int, size: int) -> None:
    assert unlabeled_batch_size(unlabeled, labeled, 8) == size


def test_batches_are_grouped_on_a_gpu_alone() -> None:
    batches = [torch.arange(400)] * 5
    assert [len(g) for g in group_batches(batches, torch.device("cpu"), (3, 224, 224))] == [1] * 5
    assert [len(g) for g in group_batches(batches, torch.device("cuda"), (3, 224, 224))] == [2, 2, 1]
    assert group_batches([], torch.device("cuda"), (3, 8, 8)) == []


def test_the_published_schedule() -> None:
    training = Training()
    assert [training.decay(e) for e in (0, 159, 160, 199)] == [1, 1, 0.1, 0.1]
    assert [training.detached(e) for e in (0, 120, 121, 199)] == [False, False, True, True]
    assert [Training(decay_early=1).decay(e) for e in (158, 159)] == [1, 0.1]
    assert Training(epochs=10, decay_at=(0.5, 0.8)).decay(9) == pytest.approx(0.01)


def test_tap_means_are_the_average_of_the_convolution() -> None:
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False).double()
    for height, width in ((8, 8), (7, 5), (1, 1), (2, 3)):
        stage = torch.randn(3, 4, height, width, dtype=torch.float64)
        weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, 4)
        ours = tap_means(stage, tap_matrix(height, width, stage.device, stage.dtype)).flatten(1) @ weight
        torch.testing.assert_close(ours, conv(stage).mean(dim=(2, 3)), rtol=1e-6, atol=1e-7)


def test_the_module_trains_after_it_was_scored_with() -> None:
    module, stage = LossPredictionModule((3, 5), width=4), [torch.randn(2, c, 4, 4) for c in (3, 5)]
    with torch.inference_mode():
        module(stage)
    module([part.requires_grad_(True) for part in stage]).sum().backward()
    assert stage[0].grad is not None


def test_the_module_passes_gradients_to_the_stages() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, c, 4, 4, requires_grad=True) for c in (3, 5, 7)]
    LossPredictionModule((3, 5, 7), width=4)(maps).sum().backward()
    assert all(stage.grad is not None and stage.grad.abs().sum() > 0 for stage in maps)


@pytest.mark.parametrize("backbone", [small_cnn, resnet18])
def test_a_frozen_backbone_says_the_same(backbone: object) -> None:
    torch.manual_seed(0)
    network = backbone(num_classes=3, in_channels=1)  # type: ignore[operator]
    images = torch.randn(8, 1, 8, 8)
    network.train()(images)  # moves the running statistics
    frozen, expected = FrozenBackbone(network, bfloat16=False)(images), network.eval()(images)
    for ours, theirs in zip(
        (frozen.logits, frozen.embedding, *frozen.maps),
        (expected.logits, expected.embedding, *expected.maps),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, ConvNorm) for m in FrozenBackbone(network, bfloat16=False).network.modules())
    assert [stage.shape[1] for stage in frozen.maps] == list(network.channels)
    half = FrozenBackbone(network, bfloat16=True)(images)
    assert half.logits.dtype == half.embedding.dtype == torch.float32
    torch.testing.assert_close(half.logits, expected.logits, rtol=0.05, atol=0.05)


def test_statistics_are_frozen_for_a_single_image_alone() -> None:
    network = small_cnn(num_classes=3, in_channels=1).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with frozen_statistics(network, active=True):
        network(torch.randn(1, 1, 2, 2))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(m.training for m in network.modules())


def test_calibration_error_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]]))
    labels = torch.tensor([0, 0, 1, 0])  # 2 of 3 right at 0.8, 1 of 1 right at 0.6
    assert calibration_error(logits, labels) == pytest.approx((abs(2 - 2.4) + abs(1 - 0.6)) / 4, rel=1e-5)


def test_large_images_are_augmented_and_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = Augmentation((3, 8, 8), (0.5,) * 3, (0.2,) * 3, flip=True, padding=1, cutout=4)
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    draws = augmentation.draw_strong(50, torch.Generator().manual_seed(0))
    monkeypatch.setattr(batching, "CPU_VIEW_BYTES", 4 * 3 * 8 * 8 * 20)
    parts = list(augment_in_parts(augmentation.strong, images, draws))
    assert [len(part) for part in parts] == [20, 20, 10]
    assert torch.equal(torch.cat(parts), augmentation.strong(images, draws))
    assert [part.shape for part in augment_in_parts(augmentation.strong, images[:0], take_draws(draws, slice(0)))] == [
        (0, 3, 8, 8)
    ]
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [inference_batch_size(cpu, side, side) for side in (8, 32, 64, 128, 224, 5000)] == [256, 256, 256, 64, 20, 1]
    assert [inference_batch_size(cuda, side, side) for side in (32, 64, 128, 224)] == [4096, 4096, 1024, 512]
