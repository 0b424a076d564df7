"""Fused batch norms, copied weights and padded pairs compute what the plain operations do; CUDA itself: test_cuda."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from benchmarks.setups import make_setup, synthetic
from sslpl.budget import Budget
from sslpl.learn.frozen_losses import FrozenLosses, padded_pairs, split_losses
from sslpl.learn.joint_step import kernel_search
from sslpl.loop import initial_state
from sslpl.models import convolution, cpu_convolution, fused_norm
from sslpl.models.conv_norm import ConvNorm, ConvNormReLU, ResidualBlock, conv_relu
from sslpl.models.frozen import ROUND, FrozenBackbone, gpu_batch_sizes
from sslpl.models.fused_norm import can_fuse_norm, fused_batch_norms, norm_relu, plan
from sslpl.models.resnet import resnet18, resnet50
from sslpl.models.weight_copies import WeightCopies
from sslpl.phases.train import train
from sslpl.ranking import bce_ranking_loss, margin_ranking_loss
from sslpl.setup import Acceleration, acceleration_on
from sslpl.state import State
from sslpl.training import Training

needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="no interpreter of Triton's kernels on the CPU"
)


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in norm.parameters():
            values.copy_(torch.randn(channels, generator=generator))
        norm.running_mean.copy_(torch.randn(channels, generator=generator))  # type: ignore[union-attr]
    return norm


def outcome(shape: tuple[int, ...], add: bool, relu: bool, fused: bool, dtype: torch.dtype) -> list[Tensor]:
    """Returns the output, all gradients and the running statistics of one call, in float64."""
    generator = torch.Generator().manual_seed(0)
    images, residual, gradient = (
        values.to(dtype).contiguous(memory_format=torch.channels_last)
        for values in (3 + 2 * torch.randn(shape, generator=generator), *torch.randn(2, *shape, generator=generator))
    )
    norm = norm_of(shape[1]).to(torch.float64 if dtype == torch.float64 else torch.float32)
    inputs = [images.requires_grad_(), *([residual.requires_grad_()] if add else []), norm.weight, norm.bias]
    with fused_batch_norms(fused):
        output = norm_relu(norm, images, residual if add else None, relu)
    gradients = torch.autograd.grad(output, inputs, gradient)
    buffers = [value.double() for value in norm.buffers()]
    return [output.detach().double(), *(value.double() for value in gradients), *buffers]


def errors(values: list[Tensor], reference: list[Tensor]) -> list[float]:
    return [float((ours - exact).norm() / (exact.norm() + 1e-9)) for ours, exact in zip(values, reference, strict=True)]


@needs_interpreter
@pytest.mark.parametrize(("add", "relu"), [(False, True), (True, True), (False, False), (True, False)])
@pytest.mark.parametrize("shape", [(4, 64, 5, 5), (3, 70, 4, 3), (16, 65, 8, 8)])
def test_a_fused_batch_norm_is_as_exact_as_the_plain_one(shape: tuple[int, ...], add: bool, relu: bool) -> None:
    exact = outcome(shape, add, relu, False, torch.float64)
    fused, plain = (errors(outcome(shape, add, relu, fused, torch.float32), exact) for fused in (True, False))
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours <= max(4 * theirs, 1e-6)


def test_the_sums_are_split_into_parts() -> None:
    rows = 16 * 8 * 8
    assert plan(rows, 65)[2]["PARTS"] > 1  # so that the test above adds up parts
    assert plan(10**6, 64)[2]["PARTS"] <= fused_norm.PROGRAMS


@needs_interpreter
def test_equal_calls_give_equal_bits() -> None:
    first, second = (outcome((8, 64, 8, 8), True, True, True, torch.float32) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_what_is_no_batch_of_rows_is_not_fused() -> None:
    images, norm = torch.randn(2, 8, 4, 4), nn.BatchNorm2d(8)
    rows = images.contiguous(memory_format=torch.channels_last)
    assert can_fuse_norm(norm, rows, None)
    assert not can_fuse_norm(norm, images, None)
    assert not can_fuse_norm(norm, rows, rows.double())
    assert not can_fuse_norm(nn.BatchNorm2d(8, affine=False), rows, None)
    assert not can_fuse_norm(nn.BatchNorm2d(8, momentum=None), rows, None)
    assert not can_fuse_norm(nn.BatchNorm2d(8).eval(), rows, None)


def test_a_convolution_with_relu_is_that_of_its_layers() -> None:
    layer, images = ConvNorm(3, 8, 3).eval(), torch.randn(2, 3, 6, 6)
    residual = torch.randn(2, 8, 6, 6)
    expected = layer[1](layer[0](images))
    torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(conv_relu(layer, images), expected.relu())
    torch.testing.assert_close(conv_relu(layer, images, residual), (expected + residual).relu())
    stem = ConvNormReLU(layer, nn.ReLU(), nn.MaxPool2d(2))
    torch.testing.assert_close(stem(images), nn.functional.max_pool2d(expected.relu(), 2))


def trained(acceleration: Acceleration) -> State:
    """Returns the state after two short epochs in bfloat16, the second with a detached module."""
    training = Training(epochs=2, batch_size=32, trim=False, rate=0.01, detach_after=0.5)
    setup = make_setup(synthetic(160, 40, 10, (3, 16, 16)), torch.device("cpu"), training, Budget(80, 1, 1, 1.0))
    setup = setup._replace(bfloat16=True, acceleration=acceleration)
    state = initial_state(setup)
    list(train(setup, state))
    return state


def pointwise_by_convolution(images: Tensor, weight: Tensor, stride: int) -> Tensor:
    return nn.functional.conv2d(images, weight, None, stride)


def test_copied_weights_train_as_autocast_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_convolution, "TINY_OUTPUT", 0)  # whose gradient is computed in another way on a CPU
    monkeypatch.setattr(cpu_convolution, "HAS_AMX", False)
    monkeypatch.setattr(cpu_convolution, "pointwise", pointwise_by_convolution)
    plain, copied = trained(Acceleration()), trained(Acceleration(copied_weights=True, overlap=True))
    for network in ("backbone", "module"):
        ours, theirs = getattr(copied, network).state_dict(), getattr(plain, network).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_weight_that_is_used_twice_has_the_sum_of_its_gradients() -> None:
    layer, images = convolution.Conv2d(4, 4, 3, padding=1, bias=False), torch.randn(2, 4, 5, 5)
    copies = WeightCopies(layer, overlap=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(layer(images)).sum().backward()
        expected, layer.weight.grad = layer.weight.grad, None
        with copies.use():
            output = layer(layer(images))
    output.sum().backward()
    assert layer.weight.grad is None
    copies.store_gradients()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=2e-2, atol=1e-2)
    assert layer.copied is None


def test_few_input_channels_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, images = convolution.Conv2d(3, 4, 3, padding=1, bias=False), torch.randn(2, 3, 5, 5)
    copies = WeightCopies(layer, overlap=False)
    copies.copies[0].padding = 5  # as on a GPU
    copies.copies[0].values = torch.zeros(4, 8, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(images)
        expected.sum().backward()
        gradient, layer.weight.grad = layer.weight.grad, None
        with copies.use():
            output = layer(images)
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=1e-2)
    output.sum().backward()
    copies.store_gradients()
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=2e-2, atol=1e-2)


def test_a_cpu_is_not_accelerated() -> None:
    assert acceleration_on(torch.device("cpu")) == Acceleration(False, False, False)


@pytest.mark.parametrize("loss", [bce_ranking_loss, margin_ranking_loss])
def test_padded_pairs_have_the_ranking_loss_of_their_batch(loss: object) -> None:
    counts, generator = [7, 0, 1, 2, 12, 5], torch.Generator().manual_seed(0)
    total = sum(counts)
    scores = torch.randn(total, 3, generator=generator).requires_grad_()
    group = FrozenLosses((scores,), torch.rand(total, generator=generator), torch.rand(total, generator=generator))

    def losses(batches: list[FrozenLosses]) -> tuple[Tensor, Tensor]:
        values = [loss(part.summaries[0].sum(1), part.loss, weight=part.weight) for part in batches]  # type: ignore[operator]
        return torch.stack(values).detach(), torch.autograd.grad(torch.stack(values).sum(), scores)[0]

    padded = padded_pairs(group, counts, 12)
    assert [len(part.loss) for part in padded] == [12] * len(counts)
    torch.testing.assert_close(losses(padded), losses(split_losses(group, counts)))


def test_a_group_without_a_confident_image_stays_empty() -> None:
    empty = FrozenLosses((torch.zeros(0, 3),), torch.zeros(0), torch.zeros(0))
    assert [len(part.loss) for part in padded_pairs(empty, [0, 0], 8)] == [0, 0]


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_a_folded_network_adds_the_biases_of_its_shortcuts_once(build: Callable[..., nn.Module]) -> None:
    network, images = build(num_classes=4, in_channels=3), torch.randn(8, 3, 16, 16)
    network.train()(images)  # moves the running statistics
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
    expected, frozen = network.eval()(images), FrozenBackbone(network, bfloat16=False)
    shortcuts = [part.shortcut for part in frozen.network.modules() if isinstance(part, ResidualBlock)]
    assert [part.bias for part in shortcuts if isinstance(part, nn.Conv2d)].count(None) >= 3
    for ours, theirs in zip(frozen(images).maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "largest"), [(0, 4096), (16, 4096), (3600, 4096), (9000, 4096), (2000, 1536)])
def test_batches_on_a_gpu_have_gpu_batch_sizes(count: int, largest: int) -> None:
    sizes = gpu_batch_sizes(count, largest)
    assert sum(sizes) == count
    padded = {-(-size // ROUND) * ROUND for size in sizes if size}
    assert padded <= {largest // 2**power // ROUND * ROUND for power in range(8)} | {ROUND}


def test_no_search_for_a_batch_that_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with kernel_search(worthwhile=False):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark
    with kernel_search(worthwhile=True):
        assert torch.backends.cudnn.benchmark
