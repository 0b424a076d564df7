"""Images as files for annotators: single pictures and a contact sheet."""

import io
from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw
from torch import Tensor

SIDE, CAPTION, GAP = 112, 14, 6  # pixels: thumbnail side, caption height, gap between cells
LEGIBLE_SIDE = 128  # pixels; pictures with a shorter side of at most half of it are enlarged


def picture(pixels: Tensor) -> Image.Image:
    """Converts an image [C, H, W] uint8 to a picture: the first three channels as RGB, or the first as gray."""
    array = pixels.cpu().numpy()
    return Image.fromarray(array[:3].transpose(1, 2, 0)) if len(array) >= 3 else Image.fromarray(array[0])


def png(image: Image.Image) -> bytes:
    """Encodes a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarges a small picture by an integer factor, by repeating pixels."""
    factor = max(1, LEGIBLE_SIDE // min(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def contact_sheet(images: Sequence[Tensor], captions: Sequence[str]) -> Image.Image:
    """Draws thumbnails in rows, each with its caption below, cut to its width."""
    columns = max(1, min(len(images), max(8, ceil(sqrt(len(images))))))
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + columns * width, GAP + ceil(len(images) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + position % columns * width, GAP + position // columns * height
        image = enlarge(picture(pixels).convert("RGB"))
        image.thumbnail((SIDE, SIDE))
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        # The built-in font has only Latin-1 letters.
        text = caption.encode("latin-1", "replace").decode("latin-1")
        while len(text) > 1 and draw.textlength(text) > SIDE:
            text = text[:-1]
        draw.text((left, top + SIDE + 1), text, fill="black")
    return sheet
