"""The fast backbone: whitening against a direct eigendecomposition, its stages, and its place in a run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import TINY, Result, run_folder
from test_captured import setup_of
from torch import Tensor, nn

from sslpl.config.build import pool_sample
from sslpl.models.fast_cnn import fast_cnn
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.whitening import whitening_filters


def smooth_images(count: int = 70, side: int = 9, channels: int = 3) -> Tensor:
    """Returns images whose neighboring pixels and channels are correlated."""
    noise = torch.randn(count, channels, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    mixed = noise + noise.mean(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(mixed, 3, stride=1) + 0.2


def patches_by_loop(images: Tensor, kernel: int) -> np.ndarray:
    side = images.shape[2] - kernel + 1
    rows = [
        images[:, :, y : y + kernel, x : x + kernel].reshape(len(images), -1) for y in range(side) for x in range(side)
    ]
    return torch.cat(rows).double().numpy()


@pytest.mark.parametrize(("kernel", "channels"), [(2, 3), (3, 1)])
def test_whitening_is_that_of_an_eigendecomposition_of_the_patches(kernel: int, channels: int) -> None:
    images = smooth_images(channels=channels)
    patches = patches_by_loop(images, kernel)
    _, singular, directions = np.linalg.svd(patches / np.sqrt(len(patches)), full_matrices=False)
    expected = directions / np.sqrt(singular**2 + 0.01 * (singular**2).mean())[:, None]
    filters = whitening_filters(images, kernel).flatten(1).double().numpy()
    signs = np.sign((filters * expected).sum(axis=1, keepdims=True))  # an eigenvector has no sign
    np.testing.assert_allclose(filters, signs * expected, rtol=1e-4, atol=1e-5)


def test_whitened_patches_are_uncorrelated_and_of_nearly_equal_scale() -> None:
    images = smooth_images()
    outputs = torch.nn.functional.conv2d(images, whitening_filters(images, 2)).transpose(0, 1).flatten(1).double()
    moments = outputs @ outputs.T / outputs.shape[1]
    scales = moments.diagonal()
    torch.testing.assert_close(moments, torch.diag(scales), rtol=0, atol=1e-4)
    assert 0.5 < scales[:3].min() < scales[:3].max() <= 1


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize(("depth", "residual"), [(1, False), (2, True)])
def test_stages_feed_the_module_and_every_trainable_weight_is_trained(side: int, depth: int, residual: bool) -> None:
    torch.manual_seed(0)
    network = fast_cnn(num_classes=5, in_channels=1, width=4, depth=depth, residual=residual)
    features = network(torch.randn(3, 1, side, side))
    assert features.logits.shape == (3, 5)
    assert [stage.shape[1] for stage in features.maps] == list(network.channels) == [4, 16, 16]
    torch.testing.assert_close(features.embedding, features.maps[-1].flatten(1))
    (features.logits.sum() + LossPredictionModule(network.channels)(features.maps).sum()).backward()
    untrained = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert untrained == ["stem.conv.weight"]


def test_the_frozen_copy_computes_the_same() -> None:
    torch.manual_seed(0)
    network = fast_cnn(num_classes=5, in_channels=3, sample=smooth_images(), width=4)
    images = torch.randn(6, 3, 32, 32)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
    network.train()(images)  # moves the batch norm statistics
    expected = network.eval()(images)
    torch.testing.assert_close(FrozenBackbone(network, False)(images).logits, expected.logits, rtol=1e-4, atol=1e-5)
    frozen = FrozenBackbone(network, True)(images)
    assert frozen.logits.dtype == torch.float32
    torch.testing.assert_close(frozen.logits, expected.logits, rtol=5e-2, atol=5e-2)


def test_a_run_whitens_by_its_pool_and_shares_the_filters_between_seeds() -> None:
    setups = [setup_of("backbone=fast_cnn", "backbone.width=16", f"seed={seed}") for seed in (0, 1)]
    networks = [setup.build(0)[0] for setup in setups]
    filters = whitening_filters(pool_sample(setups[0].dataset), 2)
    for network in networks:
        torch.testing.assert_close(network.stem.conv.weight, torch.cat([filters, -filters]))  # type: ignore[union-attr]
    first, second = (network.stages[0].first.weight for network in networks)  # type: ignore[union-attr]
    assert not torch.equal(first, second)


def test_a_run_with_the_fast_backbone(sslpl: Callable[..., Result]) -> None:
    done = sslpl(*TINY, "backbone=fast_cnn", "backbone.width=4", "training=fast", "training.min_steps=4")
    assert done.code == 0, done.err
    saved = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
    assert saved["stem.conv.weight"].shape == (8, 1, 2, 2)
