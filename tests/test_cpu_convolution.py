"""Convolutions on a CPU: packed maps, products for gradients and fused operators equal the library's convolutions."""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslpl.models import conv_norm, cpu_convolution
from sslpl.models.backbone import small_cnn
from sslpl.models.conv_norm import conv_relu
from sslpl.models.convolution import Conv2d
from sslpl.models.cpu_convolution import (
    Packing,
    SmallMaps,
    convolution_relu,
    fused_operators_work,
    tap_range,
)
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.resnet import resnet18, resnet50
from sslpl.runtime import has_bfloat16

CPU = torch.device("cpu")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(params=[False, True], ids=["no_amx", "amx"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU is taken for one with AMX, so that small maps are packed."""
    monkeypatch.setattr(cpu_convolution, "HAS_AMX", request.param)
    return bool(request.param)


@pytest.fixture(autouse=True)
def operators_are_checked_anew() -> Iterator[None]:
    fused_operators_work.cache_clear()
    yield
    fused_operators_work.cache_clear()


def gradients(
    convolution: Callable[[Tensor, Tensor], Tensor], images: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns output, gradient to the images and gradient to the weight of a loss that weights each output."""
    images, weight = images.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolution(images, weight)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * factors.to(out.dtype)).sum().backward()
    assert images.grad is not None
    assert weight.grad is not None
    return out.detach(), images.grad, weight.grad


def inputs(batch: int, cin: int, height: int, width: int, kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, cin, height, width, generator=generator)
    return images.to(dtype), torch.randn(5, cin, kernel, kernel, generator=generator).to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("tiny", "packed"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (7, 2)])
def test_small_maps_equal_the_convolution_in_float64(
    kernel: int, stride: int, tiny: bool, packed: bool, layout: torch.memory_format
) -> None:
    padding = kernel // 2
    for batch, (height, width) in product((1, 2, 9, 33), ((1, 1), (2, 2), (3, 5), (4, 4), (7, 7), (8, 8), (15, 16))):
        images, weight = inputs(batch, 3, height, width, kernel, torch.float64)
        images, weight = images.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        ours = gradients(lambda x, w: SmallMaps.apply(x, w, stride, padding, tiny, packed), images, weight)
        theirs = gradients(lambda x, w: functional.conv2d(x, w, None, stride, padding), images, weight)
        for mine, usual in zip(ours, theirs, strict=True):
            assert mine.shape == usual.shape
            torch.testing.assert_close(mine, usual, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("side", "kernel", "stride"),
    [
        *((1, 3, 1), (2, 3, 1), (4, 3, 1), (4, 3, 2), (7, 3, 1), (7, 3, 2), (8, 3, 1), (8, 3, 2), (15, 3, 2)),
        *((16, 3, 1), (16, 3, 2), (4, 1, 1), (7, 1, 2), (8, 1, 2), (9, 1, 3), (16, 1, 2)),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 9, 64])
def test_a_convolution_under_autocast_has_the_gradients_of_the_library(
    side: int, kernel: int, stride: int, layout: torch.memory_format, batch: int, amx: bool
) -> None:
    ours = Conv2d(6, 5, kernel, stride, padding=kernel // 2, bias=False)
    images, weight = inputs(batch, 6, side, side, kernel, torch.float32)
    images = images.contiguous(memory_format=layout)

    def mine(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.func.functional_call(ours, {"weight": w}, x)

    def usual(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.conv2d(x, w, None, stride, kernel // 2)

    for got, expected in zip(gradients(mine, images, weight), gradients(usual, images, weight), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.01 * expected.abs().max().item())


def test_a_convolution_without_gradient_to_its_weight_or_its_images(amx: bool) -> None:
    ours = Conv2d(3, 5, 3, padding=1, bias=False)
    images = torch.randn(9, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = functional.conv2d(images, ours.weight, None, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), expected, rtol=0.02, atol=0.02)
        ours(images).float().sum().backward()
        assert ours.weight.grad is not None
        ours.requires_grad_(False)
        ours(images.requires_grad_()).float().sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0


def test_the_first_loss_of_a_packed_network_is_that_of_the_library_and_its_gradients_are_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    results = []
    for packed in (False, True):
        monkeypatch.setattr(cpu_convolution, "HAS_AMX", packed)
        torch.manual_seed(0)
        network = resnet18(num_classes=3, in_channels=3).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(network(images).logits.float(), labels)
        loss.backward()
        results.append((loss.detach(), torch.cat([weight.grad.flatten() for weight in network.parameters()])))
    (loss, grads), (packed_loss, packed_grads) = results
    torch.testing.assert_close(packed_loss, loss, rtol=1e-3, atol=1e-3)
    assert torch.linalg.vector_norm(packed_grads - grads) < 0.02 * torch.linalg.vector_norm(grads)


def test_convolutions_are_compiled_without_a_break(amx: bool) -> None:
    torch.manual_seed(0)
    network, images = small_cnn(num_classes=3, in_channels=1), torch.randn(4, 1, 8, 8)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    results = []
    for forward in (network, compiled):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(images).logits.float()
        logits.sum().backward()
        results.append((logits.detach(), *(weight.grad for weight in network.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_gaps_between_packed_maps_are_zero_and_as_wide_as_the_padding() -> None:
    images = torch.ones(7, 2, 4, 4)
    packing = Packing.of(images, kernel=3, stride=1, padding=1)
    rows = packing.pack(images)
    assert rows.shape == (2, 2, 4, 30)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert rows.sum() == images.sum()
    assert rows[0, 0, 0].tolist() == [1, 1, 1, 1, 0] * 6
    assert rows[1, 0, 0].tolist() == [1, 1, 1, 1, 0] + [0] * 25
    assert torch.equal(packing.unpack(rows), images)
    assert Packing.of(torch.ones(7, 2, 8, 8), kernel=3, stride=2, padding=1).pitch == 5


@pytest.mark.parametrize(("side", "kernel", "stride"), list(product((1, 2, 3, 4, 7, 8), (1, 3, 5), (1, 2, 3))))
def test_inputs_under_a_tap(side: int, kernel: int, stride: int) -> None:
    padding = kernel // 2
    out_side = (side + 2 * padding - kernel) // stride + 1
    for offset in range(-padding, kernel - padding):
        pairs = [(stride * o + offset, o) for o in range(out_side) if 0 <= stride * o + offset < side]
        found, outputs = tap_range(offset, side, out_side, stride)
        assert list(zip(range(side)[found], range(out_side)[outputs], strict=True)) == pairs


def folded(stride: int, kernel: int, dtype: torch.dtype) -> nn.Conv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, kernel, stride, padding=kernel // 2).requires_grad_(False)
    return conv.to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(1, 3, 1), (4, 3, 1), (7, 3, 2), (8, 3, 2), (9, 3, 1), (8, 1, 2)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_fused_convolution_is_no_less_exact_than_a_plain_one(
    dtype: torch.dtype, side: int, kernel: int, stride: int, layout: torch.memory_format, with_residual: bool, amx: bool
) -> None:
    conv = folded(stride, kernel, dtype)
    for batch in (1, 9, 32):
        images = torch.randn(batch, 6, side, side).to(dtype).contiguous(memory_format=layout)
        residual = torch.randn(conv(images).shape).to(dtype).contiguous(memory_format=layout)
        added = residual if with_residual else None
        exact = nn.Conv2d.forward(folded(stride, kernel, dtype).double(), images.double())
        exact = (exact + residual.double() if with_residual else exact).relu()
        with torch.inference_mode():
            ours = conv_relu(conv, images, added)
        plain = conv(images) + residual if with_residual else conv(images)
        assert ours.dtype == dtype
        assert ours.shape == exact.shape
        error, usual = ((result.double() - exact).norm() for result in (ours, plain.relu()))
        assert error <= 1.1 * usual + 1e-6 * exact.norm()


class Fused(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        return conv_relu(self.conv, images)


def fusing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by one with each fused convolution."""
    calls: list[int] = []
    fused = cpu_convolution.fused_forward

    def counted(*arguments: object) -> Tensor:
        calls.append(1)
        return fused(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(conv_norm, "fused_forward", counted)
    return calls


@pytest.mark.parametrize(("build", "convolutions"), [(resnet18, 17), (resnet50, 49)])
def test_a_frozen_network_uses_fused_operators_in_its_blocks(
    build: Callable[..., nn.Module], convolutions: int, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    torch.manual_seed(0)
    network = build(num_classes=3, in_channels=3).to(memory_format=torch.channels_last)
    network.train()(torch.randn(8, 3, 16, 16))
    images = torch.randn(9, 3, 16, 16)
    with torch.inference_mode():
        expected = network.eval()(images)
    calls = fusing(monkeypatch)
    with torch.inference_mode():
        frozen = FrozenBackbone(network, bfloat16=False)(images)
    assert len(calls) == (convolutions if fused_operators_work(torch.float32) else 0)
    for ours, theirs in zip((frozen.logits, *frozen.maps), (expected.logits, *expected.maps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_frozen_convolutions_are_plain_where_operators_are_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, images = folded(1, 3, torch.float32), torch.randn(3, 6, 5, 5)
    expected, calls = conv(images).relu(), fusing(monkeypatch)

    def missing(*_: object) -> Tensor:
        raise AttributeError("_convolution_pointwise")

    def wrong(conv: nn.Conv2d, images: Tensor, residual: Tensor | None) -> Tensor:
        return convolution_relu(conv, images, residual) + 0.01

    for broken in (missing, wrong):
        fused_operators_work.cache_clear()
        monkeypatch.setattr(cpu_convolution, "convolution_relu", broken)
        with torch.no_grad():
            assert torch.equal(conv_relu(conv, images), expected)
    assert not calls


def test_frozen_convolutions_are_plain_with_gradient_autocast_or_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, images, calls = folded(1, 3, torch.float32), torch.randn(3, 6, 5, 5), fusing(monkeypatch)
    conv_relu(conv, images.requires_grad_()).sum().backward()
    assert images.grad is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv_relu(conv, images).dtype == torch.bfloat16
    with torch.no_grad():
        exported = torch.export.export(Fused(conv), (images.detach(),)).module()
        assert not calls
        torch.testing.assert_close(exported(images), conv_relu(conv, images))


@pytest.mark.parametrize(("amx_tile", "avx512_bf16"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_cpu_has_bfloat16_with_amx_or_avx512_bf16(
    amx_tile: bool, avx512_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx_tile)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert has_bfloat16(CPU) is (amx_tile or avx512_bf16)
