"""Backbones: networks that return logits, the output of every stage, and the embedding."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sslpl.models.conv_norm import ConvNorm, ConvNormReLU
from sslpl.models.starting_weights import Origin
from sslpl.types import Features, ShareBelowOne


class Staged(nn.Module):
    """A network of a stem, stages whose outputs the loss prediction module reads, and a linear head."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        num_classes: int,
        dropout: float,
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.origin = tuple(channels), origin
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.channels[-1], num_classes)

    def forward(self, images: Tensor) -> Features:
        """Computes the features of normalized images [B, C, H, W]; the embedding is in float32."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        embedding = x.float().mean(dim=(2, 3))
        return Features(self.head(self.dropout(embedding)), tuple(maps), embedding)


def small_cnn(*, num_classes: int, in_channels: int, dropout: ShareBelowOne = 0.0) -> Staged:
    """Builds four 3x3 convolutions of 32 to 256 channels, for small images on a CPU (ours)."""
    channels, strides = (32, 64, 128, 256), (1, 2, 2, 1)
    cins = (in_channels, *channels[:-1])
    stages = [
        ConvNormReLU(ConvNorm(cin, cout, 3, stride), nn.ReLU())
        for cin, cout, stride in zip(cins, channels, strides, strict=True)
    ]
    return Staged(nn.Identity(), stages, channels, num_classes, dropout)


def grow_head(old: Mapping[str, Tensor], network: nn.Module) -> nn.Module:
    """Copies the weights `old` of the same network for fewer classes into one for more classes (ours)."""
    for name, value in network.state_dict().items():
        value[tuple(slice(size) for size in old[name].shape)] = old[name]
    return network
