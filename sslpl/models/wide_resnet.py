"""Wide residual networks for small images (Zagoruyko and Komodakis 2016)."""

from torch import Tensor, nn

from sslpl.models.backbone import Staged
from sslpl.models.conv_norm import ConvNorm, conv_relu
from sslpl.models.convolution import Conv2d
from sslpl.models.fused_norm import norm_relu
from sslpl.types import ShareBelowOne


class PreactivatedBlock(nn.Module):
    """Two 3x3 convolutions, each after a batch norm and a ReLU, around an identity (He et al. 2016b)."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.first = ConvNorm(cin, width, 3, stride)
        self.second = Conv2d(width, width, 3, padding=1, bias=False)
        is_identity = stride == 1 and cin == width
        self.shortcut = None if is_identity else Conv2d(cin, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = norm_relu(self.norm, x)
        out: Tensor = self.second(conv_relu(self.first, activated))
        return out + (x if self.shortcut is None else self.shortcut(activated))


def wide_resnet(depth: int, factor: int, *, num_classes: int, in_channels: int, dropout: float) -> Staged:
    """Builds WRN-depth-factor: three stages, the last of which includes the final batch norm and ReLU."""
    channels = tuple(factor * width for width in (16, 32, 64))
    stages: list[nn.Module] = []
    for cin, width, stride in zip((16, *channels), channels, (1, 2, 2), strict=False):
        blocks = [
            PreactivatedBlock(width if index else cin, width, 1 if index else stride)
            for index in range((depth - 4) // 6)
        ]
        stages.append(nn.Sequential(*blocks))
    stages[-1] = nn.Sequential(stages[-1], nn.BatchNorm2d(channels[-1]), nn.ReLU())
    return Staged(Conv2d(in_channels, 16, 3, padding=1, bias=False), stages, channels, num_classes, dropout)


def wide_resnet28_2(*, num_classes: int, in_channels: int, dropout: ShareBelowOne = 0.0) -> Staged:
    """Builds WRN-28-2 (1.5 million weights), the usual network of semi-supervised learning on CIFAR-10."""
    return wide_resnet(28, 2, num_classes=num_classes, in_channels=in_channels, dropout=dropout)


def wide_resnet28_10(*, num_classes: int, in_channels: int, dropout: ShareBelowOne = 0.0) -> Staged:
    """Builds WRN-28-10 (36.5 million weights)."""
    return wide_resnet(28, 10, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
