"""Pictures for the labeling page: an image file as a browser shows it, and small versions."""

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from sslpl.data.decoding import apply_orientation, convert_mode

BROWSER_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
MAX_BYTES, MAX_SIDE, SMALL_SIDE = 8 * 2**20, 2400, 200  # of what is sent; sides in pixels


def picture_file(path: Path, side: int | None = None) -> tuple[bytes, str]:
    """Returns an image file and its media type, unchanged if browsers show its format and its size suits them.

    Otherwise it is a JPEG whose longer side has at most `side` pixels, which a browser shows sooner. None allows any
    number of pixels in a file of at most MAX_BYTES. Pillow may raise any exception for a damaged file.
    """
    with Image.open(path) as image:
        media_type, longest = BROWSER_FORMATS.get(image.format or ""), max(image.size)
    fits = path.stat().st_size <= MAX_BYTES and (side is None or longest <= 1.25 * side)
    if media_type is not None and fits:
        return path.read_bytes(), media_type
    return reduced(path, min(side or MAX_SIDE, MAX_SIDE)), "image/jpeg"


@lru_cache(maxsize=50)
def reduced(path: Path, side: int) -> bytes:
    """Returns `jpeg`, kept for other windows and a second look."""
    return jpeg(path, side)


@lru_cache(maxsize=2000)
def small_picture(path: Path) -> bytes:
    """Returns a JPEG of an image file with sides of at most SMALL_SIDE; a smaller image keeps its size."""
    return jpeg(path, SMALL_SIDE)


def jpeg(path: Path, side: int) -> bytes:
    """Encodes an image file upright as JPEG with sides of at most `side` pixels."""
    with Image.open(path) as file:
        file.draft("RGB", (side, side))
        image = convert_mode(apply_orientation(file), "RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
