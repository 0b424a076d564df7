"""A convolution that is computed in the fastest way known for its device and size."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslpl.models.cpu_convolution import convolve


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` without bias that `convolve` computes under CPU autocast.

    With `copied`, a `WeightCopy`, it uses a bfloat16 copy of its weight and leaves the weight's gradient to that.
    """

    copied: Any = None

    def forward(self, images: Tensor) -> Tensor:
        """Returns the same values as `nn.Conv2d`."""
        if self.copied is not None and torch.is_grad_enabled():
            output: Tensor = _CopiedWeight.apply(self.copied.padded(images.bfloat16()), self.weight, self.copied)
            return output
        is_plain = self.bias is None  # a batch norm that was folded into a frozen copy has left a bias
        if is_plain and images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            return convolve(images, self.weight, self.stride[0], int(self.padding[0]))
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
