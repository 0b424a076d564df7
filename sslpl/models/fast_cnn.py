"""A small network for fast training on small images, after the published ideas of airbench (Jordan 2024)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d

from sslpl.models.backbone import Staged
from sslpl.models.conv_norm import ConvNorm
from sslpl.models.convolution import Conv2d
from sslpl.models.whitening import whitening_filters
from sslpl.types import Count, ShareBelowOne

KERNEL = 2  # pixels of the side of a whitened patch
STAGES = (1, 4, 4)  # channels of each stage over the width


class Whitening(nn.Module):
    """A fixed convolution by whitening filters and their negatives, a trained bias, and GELU.

    Without a sample of normalized images the filters are random, to be loaded later.
    """

    def __init__(self, in_channels: int, sample: Tensor | None) -> None:
        super().__init__()
        self.channels = 2 * in_channels * KERNEL**2
        self.conv = nn.Conv2d(in_channels, self.channels, KERNEL)
        self.conv.weight.requires_grad_(False)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if sample is not None:
            filters = whitening_filters(sample, KERNEL)
            self.conv.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        return gelu(self.conv(images))


class PooledBlock(nn.Module):
    """A 3x3 convolution and 2x2 max pooling, then `depth` 3x3 convolutions, all with batch norm and GELU.

    With `residual` these are added to their input. The first output channels of a convolution start as copies of its
    input channels.
    """

    def __init__(self, cin: int, cout: int, depth: int, residual: bool) -> None:
        super().__init__()
        self.first = Conv2d(cin, cout, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(cout)
        self.others = nn.Sequential(*(nn.Sequential(ConvNorm(cout, cout, 3), nn.GELU()) for _ in range(depth)))
        self.residual = residual
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.dirac_(part.weight[: part.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x
        x = gelu(self.norm(x))
        out: Tensor = self.others(x)
        return x + out if self.residual else out


class GlobalMax(nn.Module):
    """The maximum over positions, [B, C, H, W] -> [B, C, 1, 1]; deterministic on a GPU, unlike adaptive pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3), keepdim=True)


def fast_cnn(
    *,
    num_classes: int,
    in_channels: int,
    sample: Tensor | None = None,
    width: Count = 64,
    depth: Count = 1,
    residual: bool = False,
    dropout: ShareBelowOne = 0.0,
) -> Staged:
    """Builds a whitened first convolution and three pooled stages of width, 4 x width and 4 x width channels.

    `sample` holds normalized images [N, C, H, W] of the pool, from which the first convolution is computed without
    labels. The embedding is the maximum of the last stage over positions. After airbench (Jordan 2024), which has no
    affine scale in its batch norms and scales its logits instead of the initial head.
    """
    stem = Whitening(in_channels, sample)
    channels = tuple(width * factor for factor in STAGES)
    cins = (stem.channels, *channels[:-1])
    stages: list[nn.Module] = [
        PooledBlock(cin, cout, depth, residual) for cin, cout in zip(cins, channels, strict=True)
    ]
    stages[-1] = nn.Sequential(stages[-1], GlobalMax())
    network = Staged(stem, stages, channels, num_classes, dropout)
    nn.init.normal_(network.head.weight, std=1 / channels[-1])
    nn.init.zeros_(network.head.bias)
    return network
