"""Residual networks (He et al. 2016) with stems for small images and for ImageNet."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from sslpl.models.backbone import ConvNorm, Staged
from sslpl.models.cpu_convolution import conv_relu
from sslpl.models.starting_weights import torchvision_origin
from sslpl.types import ShareBelowOne

Stem = Literal["auto", "cifar", "imagenet"]
LARGE = 64  # pixels from which `auto` selects the ImageNet stem: at 224 the CIFAR stem is 16 times as slow


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity (He et al. 2016)."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(cin, width, 3, stride)
        self.second = ConvNorm(width, width, 3)
        self.shortcut = ConvNorm(cin, width, 1, stride) if stride != 1 or cin != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return conv_relu(self.second, conv_relu(self.first, x), residual=self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, around an identity (He et al. 2016)."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = self.expansion * width
        self.first = ConvNorm(cin, width, 1)
        self.second = ConvNorm(width, width, 3, stride)
        self.third = ConvNorm(width, cout, 1)
        self.shortcut = ConvNorm(cin, cout, 1, stride) if stride != 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return conv_relu(self.third, conv_relu(self.second, conv_relu(self.first, x)), residual=self.shortcut(x))


def resnet(
    name: str,
    block: type[BasicBlock | Bottleneck],
    depths: Sequence[int],
    num_classes: int,
    stem: Callable[[], nn.Module],
    dropout: float,
) -> Staged:
    """Builds a ResNet of four stages (He et al. 2016)."""
    widths, strides = (64, 128, 256, 512), (1, 2, 2, 2)
    stages, cin = [], 64
    for width, stride, depth in zip(widths, strides, depths, strict=True):
        layers = [block(cin, width, stride)]
        cin = block.expansion * width
        layers += [block(cin, width, 1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*layers))
    channels = [block.expansion * width for width in widths]
    return Staged(stem(), stages, channels, num_classes, dropout, torchvision_origin(name, translate_resnet_name))


def resnet_stem(in_channels: int, image_size: int, stem: Stem) -> nn.Sequential:
    """Builds the stem of a ResNet; that for CIFAR is 3x3 with stride 1 and no pooling (SSLPM's code)."""
    if stem == "imagenet" or (stem == "auto" and image_size >= LARGE):
        return nn.Sequential(ConvNorm(in_channels, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(ConvNorm(in_channels, 64, 3), nn.ReLU())


def resnet18(
    *, num_classes: int, in_channels: int, image_size: int = 32, dropout: ShareBelowOne = 0.0, stem: Stem = "auto"
) -> Staged:
    """Builds ResNet-18, the backbone of the SSLPM paper (He et al. 2016; SSLPM's code)."""
    build_stem = partial(resnet_stem, in_channels, image_size, stem)
    return resnet("resnet18", BasicBlock, (2, 2, 2, 2), num_classes, build_stem, dropout)


def resnet34(
    *, num_classes: int, in_channels: int, image_size: int = 32, dropout: ShareBelowOne = 0.0, stem: Stem = "auto"
) -> Staged:
    """Builds ResNet-34 (He et al. 2016)."""
    build_stem = partial(resnet_stem, in_channels, image_size, stem)
    return resnet("resnet34", BasicBlock, (3, 4, 6, 3), num_classes, build_stem, dropout)


def resnet50(
    *, num_classes: int, in_channels: int, image_size: int = 32, dropout: ShareBelowOne = 0.0, stem: Stem = "auto"
) -> Staged:
    """Builds ResNet-50 with the stride in the 3x3 convolutions, as in torchvision (He et al. 2016)."""
    build_stem = partial(resnet_stem, in_channels, image_size, stem)
    return resnet("resnet50", Bottleneck, (3, 4, 6, 3), num_classes, build_stem, dropout)


def translate_resnet_name(name: str) -> str:
    """Translates a weight name of torchvision's ResNets to that of ours."""
    parts = name.split(".")
    first, last = parts[0], parts[-1]
    if first in ("conv1", "bn1"):
        return f"stem.0.{int(first == 'bn1')}.{last}"
    if first == "fc":
        return f"head.{last}"
    if not first.startswith("layer") or len(parts) < 5 - (parts[2] != "downsample"):
        return name
    stage, block, layer = int(first.removeprefix("layer")) - 1, parts[1], parts[2]
    if layer == "downsample":
        return f"stages.{stage}.{block}.shortcut.{parts[3]}.{last}"
    convolution = {"1": "first", "2": "second", "3": "third"}[layer[-1]]
    return f"stages.{stage}.{block}.{convolution}.{int(layer.startswith('bn'))}.{last}"
