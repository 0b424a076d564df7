"""Decodes image files of any format, size and mode that Pillow reads into uint8 pixels of one shape."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sslpl.types import UserError


class ImageFormat(NamedTuple):
    """Target format of an image: its shorter side is resized, then its center is cropped."""

    channels: int  # 3: color, 1: gray
    resize: int  # length in pixels of the shorter side after resizing
    size: int  # side in pixels of the square crop, at most `resize`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.size, self.size


def image_format(channels: int, resize: int, size: int) -> ImageFormat:
    """Returns an image format; UserError if the crop would be larger than the resized image."""
    if size > resize:
        raise UserError(f"dataset.size={size}: must be at most dataset.resize={resize}, of which it is the center")
    return ImageFormat(channels, resize, size)


def image_reader(paths: list[str], fmt: ImageFormat) -> Callable[[int], Tensor]:
    """Returns a function that reads the image at a position, [C, size, size] uint8."""
    return lambda position: read_image(paths[position], fmt)


def read_image(path: str, fmt: ImageFormat) -> Tensor:
    """Reads an image file as [C, size, size] uint8; Pillow may raise any exception for a damaged file."""
    return torch.from_numpy(to_array(open_image(path, fmt)))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Copies the pixels of a gray or color image into an array [C, H, W]."""
    values = np.array(image, dtype=np.uint8)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def open_image(path: str, fmt: ImageFormat) -> Image.Image:
    """Reads an image file upright and in the target format; Pillow may raise any exception for a damaged file.

    A large JPEG is decoded at a half, a quarter or an eighth of its side as long as that is at least twice the target
    side: much faster and almost identical (Pillow's rule for thumbnails).
    """
    with Image.open(path) as file:
        file.draft("RGB" if fmt.channels == 3 else "L", (2 * fmt.resize, 2 * fmt.resize))
        image = apply_orientation(file)
    return center_crop(convert_mode(image, "RGB" if fmt.channels == 3 else "L"), fmt)


def apply_orientation(image: Image.Image) -> Image.Image:
    """Rotates an image by its EXIF orientation; damaged EXIF data is ignored, a damaged image raises."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata raises anything
        return image.copy()


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to gray (L) or color (RGB); transparency becomes white, 16 bits are cut to the upper 8 (ours)."""
    if image.mode.startswith("I"):  # 16-bit values, stored in 16 or 32 bits
        values = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, fmt: ImageFormat) -> Image.Image:
    """Resizes the shorter side and crops the center, as torchvision's Resize and CenterCrop do up to rounding.

    Only the cropped region is resized, so that an image with an extreme aspect ratio takes no more memory than others.
    """
    width, height = image.size
    short = min(width, height)
    resized = [int(fmt.resize * side / short) for side in (width, height)]
    left, top = (round((side - fmt.size) / 2) for side in resized)
    if resized == [width, height]:
        return image.crop((left, top, left + fmt.size, top + fmt.size))
    x_scale, y_scale = width / resized[0], height / resized[1]
    right, bottom = (left + fmt.size) * x_scale, (top + fmt.size) * y_scale
    box = (left * x_scale, top * y_scale, min(right, width), min(bottom, height))
    return image.resize((fmt.size, fmt.size), Image.Resampling.BILINEAR, box)
