"""The random views of SimCLR (Chen et al. 2020), computed for whole batches on the device.

Random resized crop, flip, color jitter and random grayscale: SimCLR's without the blur, as SCAN (Van Gansbeke et al.
2020) uses them for images of 32x32 pixels. They match torchvision's on float images, except that the jitter changes
brightness, contrast, saturation and hue in this order (published: a random order).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

TRIES = 10  # candidates drawn for a crop, of which the first that fits into the image is used
RATIO = 4 / 3  # the largest aspect ratio of a crop, and the inverse of the smallest one
LUMA = (0.2989, 0.587, 0.114)


class ViewDraws(NamedTuple):
    """Random numbers of views, one row per view, on the CPU."""

    box: Tensor  # [n, 4] float32 whole numbers: top, left, height, width of the crop in pixels
    flip: Tensor  # [n] bool
    jitter: Tensor  # [n, 4] factors of brightness, contrast and saturation, turns of the hue; 1, 1, 1, 0: no change
    gray: Tensor  # [n] bool


class SimCLRViews:
    """Draws random views and computes them from images."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        flip: bool,
        smallest_crop: float,
        jitter: float,
        jitter_probability: float,
        gray_probability: float,
    ) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.flip, self.smallest_crop, self.jitter = flip, smallest_crop, jitter
        self.jitter_probability, self.gray_probability = jitter_probability, gray_probability

    def draw(self, n: int, height: int, width: int, generator: Generator) -> ViewDraws:
        """Draws the random numbers of n views on the CPU."""
        box = draw_boxes(n, height, width, self.smallest_crop, generator)
        flip = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        strength = self.jitter * torch.tensor([0.8, 0.8, 0.8, 0.2])  # SimCLR's values for a strength of 1
        applied = torch.rand(n, 1, generator=generator) < self.jitter_probability
        change = strength * (2 * torch.rand(n, 4, generator=generator) - 1) * applied
        jitter = (change + torch.tensor([1.0, 1.0, 1.0, 0.0])).clamp_(min=0)
        jitter[:, 3] = change[:, 3]
        return ViewDraws(box, flip, jitter, torch.rand(n, generator=generator) < self.gray_probability)

    def __call__(self, images: Tensor, draws: ViewDraws) -> Tensor:
        """Returns a normalized view of each image, uint8 [B, C, H, W] -> float32 [B, C, H, W], channels last."""
        box, flip, jitter, gray = (values.to(images.device, non_blocking=True) for values in draws)
        views = color_jitter(resized_crop(images.float().div_(255), box, flip), jitter)
        if is_color(views):
            views = torch.where(gray.view(-1, 1, 1, 1), luma(views), views)
        return self.standardized(views)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalizes images without augmenting them, uint8 [B, C, H, W] -> float32 [B, C, H, W], channels last."""
        return self.standardized(images.float().div_(255))

    def standardized(self, images: Tensor) -> Tensor:
        """Returns images in 0..1 standardized by the mean and standard deviation of their dataset."""
        values = (images - self.mean.to(images.device)) / self.std.to(images.device)
        return values.contiguous(memory_format=torch.channels_last)


def draw_boxes(n: int, height: int, width: int, smallest: float, generator: Generator) -> Tensor:
    """Draws crops [n, 4] (top, left, height, width) that cover a share from `smallest` to 1 of the image.

    Area and position are uniform, the ratio log-uniform in 3/4..4/3; the largest such crop if none of TRIES fits.
    """
    area = height * width * (smallest + (1 - smallest) * torch.rand(n, TRIES, generator=generator))
    ratio = (math.log(RATIO) * (2 * torch.rand(n, TRIES, generator=generator) - 1)).exp()
    tries = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)
    fits = ((tries >= 1) & (tries <= torch.tensor([height, width]))).all(dim=2)
    largest = torch.tensor([min(height, round(width * RATIO)), min(width, round(height * RATIO))])
    size = torch.where(fits.any(dim=1, keepdim=True), tries[torch.arange(n), fits.byte().argmax(dim=1)], largest)
    corner = (torch.rand(n, 2, generator=generator) * (torch.tensor([height, width]) - size + 1)).floor()
    return torch.cat([corner, size], dim=1)


def resized_crop(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Returns crops `box` [B, 4] resized bilinearly to the whole image, mirrored where `flip` [B]; float [B, C, H, W].

    One matrix per image and axis takes two batched products, instead of a gather for each of four neighbors.
    """
    top, left, height, width = box.unbind(1)
    rows, columns = resize_weights(top, height, images.shape[2]), resize_weights(left, width, images.shape[3])
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    return rows[:, None] @ (images.flatten(1, 2) @ columns.mT).view(images.shape)


def resize_weights(start: Tensor, size: Tensor, side: int) -> Tensor:
    """Returns weights [B, side, side] that resize `size` [B] pixels, starting at `start` [B], to `side` pixels."""
    pixel = torch.arange(side, device=start.device, dtype=torch.float32)
    source = (pixel + 0.5) * (size / side)[:, None] - 0.5
    inside = torch.minimum(source.clamp_(min=0), size[:, None] - 1) + start[:, None]  # no pixel outside the crop
    return (1 - (inside[:, :, None] - pixel).abs()).clamp_(min=0)


def color_jitter(images: Tensor, jitter: Tensor) -> Tensor:
    """Changes brightness, contrast and, of color images, saturation and hue of images in 0..1 by jitter [B, 4]."""
    brightness, contrast, saturation, turns = jitter.view(-1, 4, 1, 1, 1).unbind(1)
    images = (images * brightness).clamp_(0, 1)
    images = torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    if not is_color(images):
        return images
    return rotate_hue(torch.lerp(luma(images), images, saturation).clamp_(0, 1), turns)


def is_color(images: Tensor) -> bool:
    """Returns True if the channels of images [B, C, H, W] are red, green and blue."""
    return images.shape[1] == 3


def luma(images: Tensor) -> Tensor:
    """Returns the luma [B, 1, H, W] of the pixels (ITU-R 601-2), or the channel mean if they are not RGB."""
    if not is_color(images):
        return images.mean(dim=1, keepdim=True)
    return (images * torch.tensor(LUMA, device=images.device).view(3, 1, 1)).sum(dim=1, keepdim=True)


def rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotates the HSV hue of images [B, 3, H, W] in 0..1 by a share [B, 1, 1, 1] of the circle."""
    high, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = high - low
    red, green, blue = images.split_with_sizes([1, 1, 1], dim=1)
    hue = torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4)
    hue = torch.where(high == red, (green - blue) / chroma, hue).nan_to_num_(0.0, 0.0, 0.0)  # in sixths; 0 for gray
    sector = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(3, 1, 1) + hue + 6 * turns) % 6
    return high - chroma * torch.minimum(sector, 4 - sector).clamp_(0, 1)
