"""The networks of VAAL: a convolutional variational autoencoder for images of any side, a discriminator of latents."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """As many 4x4 convolutions of stride 2 as leave the shorter side 2 or 3 pixels, and their mirror image.

    The first has `width` channels, each further one twice as many, at most 8 x width: with 128 at 32 pixels the network
    of VAAL's published code. The decoder also sees a condition (TA-VAAL), of zero columns where there is none.
    """

    def __init__(self, shape: Sequence[int], latent: int, width: int, conditions: int = 0) -> None:
        super().__init__()
        channels, height, side = shape
        widths = [width * min(2**depth, 8) for depth in range(strided_layers(min(height, side)))]
        sizes = [(height >> depth, side >> depth) for depth in range(len(widths) + 1)]
        self.grid = (widths[-1], *sizes[-2])  # of the decoder's first map
        down = [
            layer
            for cin, cout in zip([channels, *widths], widths, strict=False)
            for layer in (nn.Conv2d(cin, cout, 4, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())
        ]
        up: list[nn.Module] = []
        for depth in reversed(range(1, len(widths))):
            odd = (sizes[depth - 1][0] % 2, sizes[depth - 1][1] % 2)  # a side that halving rounded down
            convolution = nn.ConvTranspose2d(widths[depth], widths[depth - 1], 4, 2, 1, odd, bias=False)
            up += [convolution, nn.BatchNorm2d(widths[depth - 1]), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(widths[-1] * prod(sizes[-1]), latent)
        self.log_variance = nn.Linear(widths[-1] * prod(sizes[-1]), latent)
        self.seed = nn.Linear(latent + conditions, prod(self.grid))
        self.decoder = nn.Sequential(*up, nn.Conv2d(widths[0], channels, 1))
        for part in (
            self.encoder,
            self.mean,
            self.log_variance,
            self.seed,
        ):  # as VAAL's code: all but the decoder's maps
            initialize(part)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, latent] of the latents of images [B, C, H, W]."""
        features = self.encoder(images)
        return self.mean(features), self.log_variance(features)

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Images [B, C, H, W] of latents [B, latent] under conditions [B, conditions]."""
        grid = self.seed(torch.cat([latent, condition], dim=1)).unflatten(1, self.grid)
        images: Tensor = self.decoder(grid)
        return images


def strided_layers(side: int) -> int:
    """How many halvings leave a side of 2 or 3 pixels: 2 at 8, 3 at 28, 4 at 32, 6 at 224; at least one."""
    return max(1, side.bit_length() - 2)


def discriminator(inputs: int, width: int = 512) -> nn.Sequential:
    """Two hidden layers on a latent and its condition [B, inputs]; the logit [B, 1] of being labeled (VAAL's code)."""
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    network = nn.Sequential(*layers)
    initialize(network)
    return network


def initialize(network: nn.Module) -> None:
    """He's normal initial weights and no biases, as in VAAL's code."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
