"""Images as files for people: single pictures, and a sheet of all of them."""

import io
from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw
from torch import Tensor

SIDE, CAPTION, GAP = 112, 14, 6  # pixels of a cell of the sheet
LEGIBLE = 128  # pixels: smaller pictures are enlarged


def picture(pixels: Tensor) -> Image.Image:
    """An image [C, H, W] uint8: gray, or the first three channels."""
    array = pixels.cpu().numpy()
    return Image.fromarray(array[:3].transpose(1, 2, 0)) if len(array) >= 3 else Image.fromarray(array[0])


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def legible(image: Image.Image) -> Image.Image:
    """An image whose pixels are repeated until it is large enough to be looked at."""
    times = max(1, LEGIBLE // min(image.size))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def contact_sheet(images: Sequence[Tensor], captions: Sequence[str]) -> Image.Image:
    """Thumbnails in rows, each with a line below it."""
    columns = max(1, min(len(images), max(8, ceil(sqrt(len(images))))))
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + columns * width, GAP + ceil(len(images) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        image = legible(picture(pixels).convert("RGB"))
        image.thumbnail((SIDE, SIDE))
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        # The built-in font has Latin letters alone.
        text = caption.encode("latin-1", "replace").decode("latin-1")
        while len(text) > 1 and draw.textlength(text) > SIDE:
            text = text[:-1]
        draw.text((left, top + SIDE + 1), text, fill="black")
    return sheet
