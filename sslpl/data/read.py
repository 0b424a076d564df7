"""One image file of any format, as the pixels that a network takes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_image(path: Path, shape: tuple[int, int, int], resize: int) -> Tensor:
    """The center of an image, [C, H, W] uint8: its shorter side is scaled to `resize` pixels, `shape` cut out.

    Turned as its EXIF data say, without its transparency, the first of several frames. Raises whatever Pillow does.
    """
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    with Image.open(path) as image:
        image.draft(mode, (resize, resize))  # a JPEG is decoded no larger than it needs be
        ImageOps.exif_transpose(image, in_place=True)
        pixels = eight_bits(image).convert(mode)
    scale = min(pixels.size) / resize
    left, top = (max(0.0, (full - scale * part) / 2) for full, part in zip(pixels.size, (width, height), strict=True))
    # Only the center is scaled: the rest of a long strip would take memory for nothing.
    box = (left, top, min(pixels.width, left + scale * width), min(pixels.height, top + scale * height))
    pixels = pixels.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(pixels)).view(height, width, channels).permute(2, 0, 1).contiguous()


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of at most 8 bits a channel; Pillow would cut 16-bit gray values off, or warn of a palette."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
