"""The networks of VAAL: a convolutional VAE for images of any size and a discriminator of its latents."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """A VAE of 4x4 convolutions of stride 2 that leave 2 or 3 pixels of the shorter side, and a mirrored decoder.

    The first has `width` channels, and each further one doubles them, up to 8 x width: 128 at 32 pixels is the network
    of VAAL's published code. The decoder is conditioned on `conditions` more inputs (TA-VAAL).
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
            odd = (sizes[depth - 1][0] % 2, sizes[depth - 1][1] % 2)  # sides that were rounded down when halved
            convolution = nn.ConvTranspose2d(widths[depth], widths[depth - 1], 4, 2, 1, odd, bias=False)
            up += [convolution, nn.BatchNorm2d(widths[depth - 1]), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(widths[-1] * prod(sizes[-1]), latent)
        self.log_variance = nn.Linear(widths[-1] * prod(sizes[-1]), latent)
        self.seed = nn.Linear(latent + conditions, prod(self.grid))
        self.decoder = nn.Sequential(*up, nn.Conv2d(widths[0], channels, 1))
        for part in (self.encoder, self.mean, self.log_variance, self.seed):  # not the decoder, as in VAAL's code
            initialize(part)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and log-variance [B, latent] of the latents of images [B, C, H, W]."""
        features = self.encoder(images)
        return self.mean(features), self.log_variance(features)

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Decodes images [B, C, H, W] from latents [B, latent] and conditions [B, conditions]."""
        grid = self.seed(torch.cat([latent, condition], dim=1)).unflatten(1, self.grid)
        images: Tensor = self.decoder(grid)
        return images


def strided_layers(side: int) -> int:
    """Returns how many halvings leave 2 or 3 pixels: 2 at 8, 3 at 28, 4 at 32, 6 at 224; at least one."""
    return max(1, side.bit_length() - 2)


def discriminator(inputs: int, width: int = 512) -> nn.Sequential:
    """Builds an MLP from latents and conditions [B, inputs] to the logit [B, 1] of being labeled (VAAL's code)."""
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    network = nn.Sequential(*layers)
    initialize(network)
    return network


def initialize(network: nn.Module) -> None:
    """Initializes weights by He's normal distribution and biases by zero, as in VAAL's code."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
