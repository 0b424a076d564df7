"""Test-time augmentation: logits that are averaged over views of the test images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from sslpl.data.augmentation import Augmentation
from sslpl.training import TestViews
from sslpl.types import Features


def averaged_logits(
    network: Callable[[Tensor], Features], images: Tensor, views: TestViews, augmentation: Augmentation
) -> Tensor:
    """Returns the logits [B, classes] of normalized images, averaged over their test views."""
    total = sum(weight * network(view).logits for weight, view in weighted_views(images, views, augmentation))
    assert isinstance(total, Tensor)
    return total


def weighted_views(images: Tensor, views: TestViews, augmentation: Augmentation) -> list[tuple[float, Tensor]]:
    """Returns the test views of normalized images [B, C, H, W], with weights that sum to 1.

    `mirror`: the image and its mirror image; `mirror_and_shift`: also both shifted by a pixel towards two opposite
    corners, half of the weight (airbench). Images are mirrored and shifted only if the training does so.
    """
    weighted = [(1.0, images)]
    if views == "mirror_and_shift" and augmentation.padding:
        weighted = [(0.5, images), *((0.25, view) for view in shifted(images))]
    if views != "none" and augmentation.flip:
        weighted = [(weight / 2, view) for weight, image in weighted for view in (image, image.flip(3))]
    return weighted


def shifted(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images shifted by a pixel down and to the right, and up and to the left; edges are repeated."""
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    down, up = padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]
    return down.contiguous(memory_format=torch.channels_last), up.contiguous(memory_format=torch.channels_last)
