"""A convolution whose weight gradient is a matrix product where the CPU's library is slow."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL_OUTPUT = 16  # pixels: for outputs of up to 4x4 the library's bfloat16 weight gradient is slower


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` without bias that computes weight gradients of small outputs by matmul under CPU autocast.

    With `copied`, a `WeightCopy`, it uses a bfloat16 copy of its weight and leaves the weight's gradient to that.
    """

    copied: Any = None

    def forward(self, images: Tensor) -> Tensor:
        """Returns the same values as `nn.Conv2d`."""
        stride, padding = self.stride[0], int(self.padding[0])
        if self.copied is not None and torch.is_grad_enabled():
            output: Tensor = _CopiedWeight.apply(self.copied.padded(images.bfloat16()), self.weight, self.copied)
            return output
        out = [(side + 2 * padding - self.kernel_size[0]) // stride + 1 for side in images.shape[2:]]
        needs_weight_grad = torch.is_grad_enabled() and self.weight.requires_grad
        if (
            needs_weight_grad
            and images.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and out[0] * out[1] <= SMALL_OUTPUT
        ):
            result: Tensor = _Product.apply(images.bfloat16(), self.weight, stride, padding)
            return result
        return super().forward(images)


class _CopiedWeight(torch.autograd.Function):
    """A convolution by the copy of a weight, which computes the weight's gradient by itself."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, _weight: Tensor, copied: Any) -> Tensor:
        ctx.save_for_backward(images)
        ctx.copied, convolution = copied, copied.convolution
        with torch.autocast(images.device.type, enabled=False):
            return functional.conv2d(images, copied.values, None, convolution.stride, convolution.padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,), (images,), copied = grads, ctx.saved_tensors, ctx.copied
        copied.add_gradient(images, grad)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return convolution_gradient(copied.convolution, grad, images, copied.values, of_weight=False), None, None


def convolution_gradient(
    convolution: nn.Conv2d, gradient: Tensor, images: Tensor, weight: Tensor, of_weight: bool
) -> Tensor:
    """Returns the gradient of a convolution's weight or of its images from that of its output."""
    padding = [int(side) for side in convolution.padding]
    mask = [not of_weight, of_weight, False]
    arguments = (list(convolution.stride), padding, list(convolution.dilation), False, [0, 0], 1, mask)
    gradients = torch.ops.aten.convolution_backward(gradient, images, weight, None, *arguments)
    result: Tensor = gradients[int(of_weight)]
    return result


class _Product(torch.autograd.Function):
    """A bfloat16 convolution whose weight gradient is one matrix product."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        weight = weight.bfloat16()
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(images, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (grad,), (images, weight) = grads, ctx.saved_tensors
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[2]
        images_grad = None
        if ctx.needs_input_grad[0]:
            arguments = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False])
            images_grad = torch.ops.aten.convolution_backward(grad, images, weight, None, *arguments)[0]
        rows = functional.pad(images.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
        windows = rows.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
        windows = windows.reshape(-1, kernel * kernel * images.shape[1])
        product = grad.permute(0, 2, 3, 1).reshape(-1, len(weight)).T @ windows
        # Cast to float32 while contiguous: autograd would cast the permuted tensor, up to ten times as slow.
        weight_grad = product.float().view(-1, kernel, kernel, images.shape[1]).permute(0, 3, 1, 2)
        return images_grad, weight_grad, None, None
