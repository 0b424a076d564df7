"""Convolutions on a CPU by other ways than the library's, where these are faster (ours).

- Small maps are packed side by side, because AMX starves on short rows.
- The weight gradient of outputs of up to 4x4 pixels is a matrix product for each tap of the kernel.
- A 1x1 convolution with a stride is a matrix product.
- Frozen convolutions add bias and residual and apply ReLU before they write their output.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional

TINY_OUTPUT = 16  # pixels: for outputs of up to 4x4 the library's bfloat16 weight gradient is slower
PACKED_SIDE = 8  # the longest side of outputs that are packed for training, and
FROZEN_PACKED_SIDE = 4  # for frozen convolutions
ROW = 32  # outputs that a packed row has at most
# On a CPU with matrix units packing pays, on others it loses up to 40%. A constant, because `torch.compile` cannot call
# the function, whose public form is missing in older versions of torch.
HAS_AMX = bool(torch.cpu._is_amx_tile_supported())


def convolve(images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Computes a bfloat16 convolution [B, C, H, W] -> [B, O, h, w] under autocast, without bias.

    Differentiable once. The weight [O, C, K, K] may be in float32.
    """
    kernel = weight.shape[2]
    height, width = output_sides(images, kernel, stride, padding)
    needs_weight_grad = torch.is_grad_enabled() and weight.requires_grad
    tiny = needs_weight_grad and height * width <= TINY_OUTPUT
    if kernel == 1 and padding == 0 and (tiny or stride > 1):
        return pointwise(images, weight, stride)
    # The compiler mistakes the strides of packed gradients.
    packed = HAS_AMX and max(height, width) <= PACKED_SIDE and keeps_size(kernel, padding) and not is_compiling()
    if tiny or packed:
        result: Tensor = SmallMaps.apply(images.bfloat16(), weight, stride, padding, tiny, packed)
        return result
    return functional.conv2d(images, weight, None, stride, padding)


def output_sides(images: Tensor, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Returns height and width of a convolution's output."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in images.shape[2:])
    return height, width


def keeps_size(kernel: int, padding: int) -> bool:
    """True if a convolution of stride 1 keeps the size of its maps, as `Packing` needs."""
    return kernel == 2 * padding + 1 > 1


def pointwise(images: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Computes a 1x1 convolution without padding and bias as a matrix product."""
    pixels = images.permute(0, 2, 3, 1)[:, ::stride, ::stride]
    out = pixels.reshape(-1, pixels.shape[3]) @ weight.flatten(1).T
    return out.view(*pixels.shape[:3], len(weight)).permute(0, 3, 1, 2)


class SmallMaps(torch.autograd.Function):
    """A convolution of small maps, which may be packed, and whose weight gradient may be matrix products.

    In the dtype of the images; the weight gradient has that of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int, tiny: bool, packed: bool
    ) -> Tensor:
        ctx.weight_dtype, weight = weight.dtype, weight.to(images.dtype)
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.tiny, ctx.packed = stride, padding, tiny, packed
        with torch.autocast("cpu", enabled=False):
            if not packed:
                return functional.conv2d(images, weight, None, stride, padding)
            packing = Packing.of(images, weight.shape[2], stride, padding)
            return packing.unpack_outputs(functional.conv2d(packing.pack(images), weight, None, stride, padding))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (images, weight) = grads, ctx.saved_tensors
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[2]
        needs_images, needs_weight = ctx.needs_input_grad[:2]
        images_grad = weight_grad = None
        needs = [needs_images, needs_weight and not ctx.tiny, False]
        arguments = (None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, needs)
        if any(needs) and ctx.packed:
            packing = Packing.of(images, kernel, stride, padding)
            rows = packing.pack_outputs(grad), packing.pack(images)
            images_grad, weight_grad, _ = torch.ops.aten.convolution_backward(*rows, weight, *arguments)
            images_grad = packing.unpack(images_grad) if needs_images else None
        elif any(needs):
            images_grad, weight_grad, _ = torch.ops.aten.convolution_backward(grad, images, weight, *arguments)
        if weight_grad is not None:
            weight_grad = weight_grad.to(ctx.weight_dtype)
        elif needs_weight:
            weight_grad = tap_products(images, grad, kernel, stride, padding, ctx.weight_dtype)
        return images_grad, weight_grad, None, None, None, None


class Packing(NamedTuple):
    """How maps stand side by side in rows, with gaps of zeros between them that no kernel reaches across."""

    batch: int
    columns: int  # maps in a row
    pitch: int  # outputs from the start of a map to that of the next
    stride: int
    width: int  # of a map
    out_width: int  # of its output

    @classmethod
    def of(cls, images: Tensor, kernel: int, stride: int, padding: int) -> "Packing":
        """Returns the packing of a batch for a convolution that `keeps_size`."""
        batch, width = len(images), images.shape[3]
        pitch = -(-(width + padding) // stride)  # the gap is at least the padding
        out_width = output_sides(images, kernel, stride, padding)[1]
        return cls(batch, max(1, min(ROW // pitch, batch)), pitch, stride, width, out_width)

    def pack(self, images: Tensor) -> Tensor:
        """Packs maps, [B, C, H, W] -> [rows, C, H, columns * stride * pitch]."""
        return pack(images, self.columns, self.stride * self.pitch)

    def unpack(self, rows: Tensor) -> Tensor:
        """Undoes `pack`."""
        return unpack(rows, self.batch, self.columns, self.width)

    def pack_outputs(self, outputs: Tensor) -> Tensor:
        """Packs outputs, or gradients of them, [B, O, h, w] -> [rows, O, h, columns * pitch]."""
        return pack(outputs, self.columns, self.pitch)

    def unpack_outputs(self, rows: Tensor) -> Tensor:
        """Undoes `pack_outputs`."""
        return unpack(rows, self.batch, self.columns, self.out_width)


def pack(maps: Tensor, count: int, pitch: int) -> Tensor:
    """Puts `count` maps side by side, `pitch` pixels apart, with zeros between them and in place of missing ones."""
    batch, channels, height, width = maps.shape
    full, rest = divmod(batch, count)
    rows = maps.new_zeros(full + (rest > 0), height, count, pitch, channels)
    pixels = maps.permute(0, 2, 3, 1)
    whole = pixels[: full * count].reshape(full, count, height, width, channels)
    rows[:full, :, :, :width] = whole.transpose(1, 2)
    if rest:
        rows[full, :, :rest, :width] = pixels[full * count :].transpose(0, 1)
    return rows.reshape(len(rows), height, count * pitch, channels).permute(0, 3, 1, 2)


def unpack(rows: Tensor, batch: int, count: int, width: int) -> Tensor:
    """Undoes `pack`: returns the first `width` columns of each of the `batch` maps, in channels-last order."""
    number, channels, height, columns = rows.shape
    maps = rows.permute(0, 2, 3, 1).reshape(number, height, count, columns // count, channels)
    maps = maps[:, :, :, :width].transpose(1, 2).reshape(number * count, height, width, channels)
    return maps[:batch].permute(0, 3, 1, 2)


def tap_products(images: Tensor, grad: Tensor, kernel: int, stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    """Computes a convolution's weight gradient [O, C, K, K], in a dtype, from its images and its output's gradient.

    For each tap of the kernel it is the product of the gradient with the pixels under the tap that are no padding.
    """
    pixels, grads = images.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    taps = images.new_empty(kernel * kernel, grads.shape[3], pixels.shape[3])
    (height, width), (out_height, out_width) = pixels.shape[1:3], grads.shape[1:3]
    for result, (down, right) in zip(taps, product(range(kernel), repeat=2), strict=True):
        inputs, outputs = tap_range(down - padding, height, out_height, stride)
        input_columns, output_columns = tap_range(right - padding, width, out_width, stride)
        under_tap = pixels[:, inputs, input_columns].flatten(0, 2)
        torch.mm(grads[:, outputs, output_columns].flatten(0, 2).T, under_tap, out=result)
    # In the layout of channels-last weights, and cast here: autograd would be slower at both.
    weight_grad = taps.new_empty(grads.shape[3], kernel * kernel, pixels.shape[3], dtype=dtype)
    weight_grad.copy_(taps.transpose(0, 1))
    return weight_grad.view(-1, kernel, kernel, pixels.shape[3]).permute(0, 3, 1, 2)


def tap_range(offset: int, side: int, out_side: int, stride: int) -> tuple[slice, slice]:
    """Returns the inputs under a tap, at `stride * output + offset`, and the outputs for which these are no padding."""
    first = max(0, -(offset // stride))
    last = min(out_side - 1, (side - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(stride * first + offset, stride * last + offset + 1, stride), slice(first, last + 1)


def can_fuse(conv: nn.Conv2d, images: Tensor) -> bool:
    """True if `fused_forward` may compute a frozen convolution: without gradient, autocast or a tracer."""
    return (
        images.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_compiling()
        and images.dtype == conv.weight.dtype
        and fused_operators_work(images.dtype)
    )


def fused_forward(conv: nn.Conv2d, images: Tensor, residual: Tensor | None = None) -> Tensor:
    """Computes relu(conv(images) + residual) by one operator, in bfloat16 with one rounding; `can_fuse` must hold."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    sides = output_sides(images, kernel, stride, padding)
    if not (HAS_AMX and max(sides) <= FROZEN_PACKED_SIDE and keeps_size(kernel, padding)):
        return convolution_relu(conv, images, residual)
    packing = Packing.of(images, kernel, stride, padding)
    packed_residual = None if residual is None else packing.pack_outputs(residual)
    return packing.unpack_outputs(convolution_relu(conv, packing.pack(images), packed_residual))


def convolution_relu(conv: nn.Conv2d, images: Tensor, residual: Tensor | None) -> Tensor:
    """Computes relu(conv(images) + residual) by torch's private operators, which its compiler uses on CPUs."""
    operator: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
    geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    if residual is None:
        return operator(images, conv.weight, conv.bias, *geometry, "relu", [], "")
    return operator(images, residual, conv.weight, conv.bias, *geometry, "add", 1.0, "relu", [], "")


@lru_cache
def fused_operators_work(dtype: torch.dtype) -> bool:
    """Returns True if torch has the private operators, and if they compute what the public ones do."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    for values in conv.parameters():
        values.uniform_(-0.2, 0.2, generator=generator)
    conv = conv.to(dtype).to(memory_format=torch.channels_last)
    images, residual = torch.randn(2, 2, 16, 4, 4, generator=generator).to(dtype)
    images, residual = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, residual))
    plain = conv(images)
    tolerance = 16 * torch.finfo(dtype).eps
    try:
        results = convolution_relu(conv, images, None), convolution_relu(conv, images, residual)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):  # another version of torch, or a build
        return False
    expected = plain.relu(), (plain + residual).relu()
    return all(
        ours.dtype == theirs.dtype and torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(results, expected, strict=True)
    )
