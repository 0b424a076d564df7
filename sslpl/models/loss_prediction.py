"""The loss prediction module, which predicts an image's loss from the stages of the backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslpl.types import Count


@torch.inference_mode(False)  # cached: the first caller may be in inference mode while a later one trains
def tap_matrix(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns the matrix [9, H W] that maps a feature map to nine strided means, one per tap of the convolution."""
    rows, cols = _taps(height), _taps(width)
    taps = torch.einsum("ah,bw->abhw", rows, cols).reshape(9, height * width)
    return taps.to(device=device, dtype=dtype)


def _taps(side: int) -> Tensor:
    """Returns [3, side]; row t averages inputs at 2 o + t - 1 over outputs o, zero outside (stride 2, padding 1)."""
    outputs = (side + 1) // 2
    taps = torch.zeros(3, side)
    for tap in range(3):
        inputs = 2 * torch.arange(outputs) + tap - 1
        inside = (inputs >= 0) & (inputs < side)
        taps[tap, inputs[inside]] = 1.0 / outputs
    return taps


def tap_means(stage: Tensor, matrix: Tensor) -> Tensor:
    """Computes nine strided means per channel by the tap matrix [9, H W], [B, C, H, W] -> [B, 9, C]."""
    batch, channels, height, width = stage.shape
    return matrix @ stage.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


class Level(nn.Module):
    """The layers for one stage: optional 3x3 convolution of stride 2, global average, linear, ReLU."""

    def __init__(self, channels: int, width: int, convolutional: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False) if convolutional else None
        self.linear = nn.Linear(channels, width)
        # Owned by the module, because a captured CUDA graph reads them for as long as the module lives.
        self.tap_matrices: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def matrix_for(self, stage: Tensor) -> Tensor:
        """Returns the tap matrix for stages of this size, cached."""
        height, width = stage.shape[2:]
        key = (height, width, stage.device, stage.dtype)
        if key not in self.tap_matrices:
            self.tap_matrices[key] = tap_matrix(*key)
        return self.tap_matrices[key]

    def summary(self, stage: Tensor) -> Tensor:
        """Reduces a stage [B, C, H, W] to the level's input: nine strided means [B, 9, C] or the mean [B, C]."""
        return stage.float().mean(dim=(2, 3)) if self.conv is None else tap_means(stage, self.matrix_for(stage))

    def forward(self, summary: Tensor) -> Tensor:
        # The global average of a bias-free convolution is linear in its input, so the weight is applied to the
        # strided means instead of the map: the same output, sixty times fewer operations at 32 pixels (ours).
        if self.conv is not None:
            weight = self.conv.weight.permute(2, 3, 1, 0).reshape(-1, self.conv.out_channels)
            summary = summary.flatten(1) @ weight.to(summary.dtype)
        with torch.autocast(summary.device.type, enabled=False):  # bf16 predictions would tie for half of the pool
            return torch.relu(self.linear(summary.float()))


class LossPredictionModule(nn.Module):
    """Predicts a loss for each image from the stages of a backbone (SSLPM; Learning Loss without convolutions)."""

    def __init__(self, channels: Sequence[int], convolutional: bool = True, width: Count = 128) -> None:
        super().__init__()
        last = len(channels) - 1
        self.levels = nn.ModuleList(Level(c, width, convolutional and k < last) for k, c in enumerate(channels))
        self.head = nn.Linear(len(channels) * width, 1)

    def summaries(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Reduces the stages to the module's inputs, small enough to store for a whole pool."""
        return tuple(level.summary(stage) for level, stage in zip(self.levels, maps, strict=True))  # type: ignore[operator]

    def predict(self, summaries: Sequence[Tensor]) -> Tensor:
        """Predicts the loss [B] from the summaries of the stages."""
        return self.predicted([level(summary) for level, summary in zip(self.levels, summaries, strict=True)])

    def predicted(self, hidden: Sequence[Tensor]) -> Tensor:
        """Predicts the loss [B] from the outputs of the levels, each [B, width]."""
        joined = torch.cat(list(hidden), dim=1)
        with torch.autocast(joined.device.type, enabled=False):
            predicted: Tensor = self.head(joined)
        return predicted.squeeze(1)

    def forward(self, maps: Sequence[Tensor], streams: Sequence[torch.cuda.Stream] = ()) -> Tensor:
        """Predicts the loss [B] in float32 from the stage outputs, each [B, C, H, W].

        With streams of a GPU, one per level, the levels are computed side by side, and so are their gradients.
        """
        if not streams:
            return self.predict(self.summaries(maps))
        hidden, current = [], torch.cuda.current_stream()
        for level, stage, stream in zip(self.levels, maps, streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                hidden.append(level(level.summary(stage)))  # type: ignore[operator]
        for stream in streams:
            current.wait_stream(stream)
        return self.predicted(hidden)


def no_module(channels: Sequence[int]) -> None:
    """Builds no loss prediction module, for strategies that do not use a predicted loss."""
