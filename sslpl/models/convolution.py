"""A convolution that a CPU computes in the fastest way known for its size."""

import torch
from torch import Tensor, nn

from sslpl.models.cpu_convolution import convolve


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` without bias that `convolve` computes under CPU autocast."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns the same values as `nn.Conv2d`."""
        if images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            return convolve(images, self.weight, self.stride[0], int(self.padding[0]))
        return super().forward(images)
