"""From an image file to pixels: any format, size and mode that Pillow reads."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sslpl.types import UserError


class ImageFormat(NamedTuple):
    """What an image becomes: its shorter side is resized, then its center is cropped."""

    channels: int  # 3: color, 1: gray
    resize: int  # pixels of the shorter side
    size: int  # side in pixels of the crop, at most `resize`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.size, self.size


def image_format(channels: int, resize: int, size: int) -> ImageFormat:
    """A form; UserError if the crop would be larger than the image."""
    if size > resize:
        raise UserError(f"dataset.size={size}: must be at most dataset.resize={resize}, of which it is the center")
    return ImageFormat(channels, resize, size)


def image_reader(paths: list[str], form: ImageFormat) -> Callable[[int], Tensor]:
    """What reads the image at a position, [C, size, size] uint8."""
    return lambda position: read_image(paths[position], form)


def read_image(path: str, form: ImageFormat) -> Tensor:
    """The image in a file, [C, size, size] uint8; any exception of Pillow's where it is damaged."""
    return torch.from_numpy(to_array(open_image(path, form)))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """[C, H, W] of a gray or color image, in memory of its own."""
    values = np.array(image, dtype=np.uint8)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def open_image(path: str, form: ImageFormat) -> Image.Image:
    """The image in a file, upright, in its form; any exception of Pillow's where it is damaged.

    A large JPEG is decoded at a half, a quarter or an eighth of its side while that leaves twice the wanted one, which
    is much faster and all but the same (Pillow's own rule for thumbnails).
    """
    with Image.open(path) as file:
        file.draft("RGB" if form.channels == 3 else "L", (2 * form.resize, 2 * form.resize))
        image = apply_orientation(file)
    return center_crop(convert_mode(image, "RGB" if form.channels == 3 else "L"), form)


def apply_orientation(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; only a damaged image raises, damaged EXIF data does not."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever is wrong in the metadata
        return image.copy()


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode in gray (L) or color (RGB): transparent parts white, 16 bits cut to the higher 8 (ours)."""
    if image.mode.startswith("I"):  # 16 bits, in 16 or 32
        values = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def center_crop(image: Image.Image, form: ImageFormat) -> Image.Image:
    """The center of an image whose shorter side was resized: torchvision's Resize and CenterCrop, up to rounding.

    Only the part that stays is resized, so that a very long image takes no more memory than another.
    """
    width, height = image.size
    short = min(width, height)
    resized = [int(form.resize * side / short) for side in (width, height)]
    left, top = (round((side - form.size) / 2) for side in resized)
    if resized == [width, height]:
        return image.crop((left, top, left + form.size, top + form.size))
    x, y = width / resized[0], height / resized[1]
    box = (left * x, top * y, min((left + form.size) * x, width), min((top + form.size) * y, height))
    return image.resize((form.size, form.size), Image.Resampling.BILINEAR, box)
