"""A convolution and its batch norm, with residual and ReLU as one operation where that is faster."""

import torch
from torch import Tensor, nn

from sslpl.models.convolution import Conv2d
from sslpl.models.cpu_convolution import can_fuse, fused_forward
from sslpl.models.fused_norm import norm_relu


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm, a pair that `fold_batch_norm` can merge."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Computes norm(conv(images))."""
        convolution, norm = self
        assert isinstance(norm, nn.BatchNorm2d)
        return norm_relu(norm, convolution(images), relu=False)


class ConvNormReLU(nn.Sequential):
    """A `ConvNorm` (or the convolution that it is folded into), a ReLU, and perhaps more layers."""

    def forward(self, images: Tensor) -> Tensor:
        """Computes the layers in order."""
        convolution, _, *others = self
        out = conv_relu(convolution, images)
        for layer in others:
            out = layer(out)
        return out


class ResidualBlock(nn.Module):
    """A block that ends with relu(last(...) + shortcut(images))."""

    shortcut: nn.Module

    @property
    def last(self) -> nn.Module:
        """The `ConvNorm` to whose output the shortcut is added."""
        raise NotImplementedError


def conv_relu(layer: nn.Module, images: Tensor, residual: Tensor | None = None) -> Tensor:
    """Computes relu(layer(images) + residual); `layer` is a `ConvNorm` or the convolution that it is folded into."""
    if isinstance(layer, ConvNorm):
        convolution, norm = layer
        assert isinstance(norm, nn.BatchNorm2d)
        return norm_relu(norm, convolution(images), residual)
    if isinstance(layer, nn.Conv2d) and can_fuse_on_gpu(layer, images):
        return folded_relu(layer, images, residual)
    if isinstance(layer, nn.Conv2d) and can_fuse(layer, images):
        return fused_forward(layer, images, residual)
    out: Tensor = layer(images)
    return (out if residual is None else out + residual).relu()


def can_fuse_on_gpu(conv: nn.Conv2d, images: Tensor) -> bool:
    """True for a frozen convolution on a GPU, whose bias, residual and ReLU cuDNN computes with it.

    Not under autocast, which would not cast the arguments of cuDNN's operators.
    """
    is_frozen = conv.bias is not None and not torch.is_grad_enabled()
    return images.is_cuda and is_frozen and images.dtype == conv.weight.dtype and not torch.is_autocast_enabled("cuda")


def folded_relu(conv: nn.Conv2d, images: Tensor, residual: Tensor | None) -> Tensor:
    """Computes relu(conv(images) + residual) by one call of cuDNN, rounded once."""
    assert not isinstance(conv.padding, str)
    stride, padding, dilation = conv.stride, conv.padding, conv.dilation
    if residual is None:
        return torch.cudnn_convolution_relu(images, conv.weight, conv.bias, stride, padding, dilation, conv.groups)
    return torch.cudnn_convolution_add_relu(
        images, conv.weight, residual, 1.0, conv.bias, stride, padding, dilation, conv.groups
    )
