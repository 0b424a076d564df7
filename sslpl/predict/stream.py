"""Streams image files to the networks in batches, which threads read a little ahead in bounded memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sslpl.data.decoding import ImageFormat, read_image
from sslpl.recording.checkpoint import ModelSignature

PREFETCHED = 2  # batches that are prefetched while one is predicted


class ImageGroup(NamedTuple):
    """A batch of consecutive files: the images that could be read, and an error line for each of the others."""

    paths: list[Path]
    images: Tensor  # [B, C, H, W] uint8
    unreadable: list[str]


def image_files(folder: Path) -> list[Path]:
    """Returns the files below a folder with the extension of a format that Pillow reads, sorted and not hidden."""
    Image.init()
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file()
    )


def image_groups(paths: Sequence[Path], signature: ModelSignature, size: int, threads: int) -> Iterator[ImageGroup]:
    """Yields the files in order, `size` at a time; only a few groups are in memory at once."""
    image_format = ImageFormat(signature.shape[0], signature.resize, signature.shape[1])

    def submit(part: Sequence[Path]) -> list[tuple[Path, Future[Tensor]]]:
        return [(path, pool.submit(read_image, str(path), image_format)) for path in part]

    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(submit(part) for part in parts[:PREFETCHED])
        for number in range(len(parts)):
            pending.extend(submit(part) for part in parts[number + PREFETCHED : number + PREFETCHED + 1])
            yield collect_group(pending.popleft(), signature)


def collect_group(reads: Sequence[tuple[Path, Future[Tensor]]], signature: ModelSignature) -> ImageGroup:
    """Waits for the files of a group and returns their images and errors."""
    paths, images, unreadable = [], [torch.empty(0, *signature.shape, dtype=torch.uint8)], []
    for path, future in reads:
        try:
            images.append(future.result()[None])
            paths.append(path)
        except Exception as error:  # Pillow raises anything for a damaged file
            reason = " ".join(str(error).replace(repr(str(path)), "").split()) or type(error).__name__
            unreadable.append(f"{path}: cannot be read and is left out ({reason[:150]})")
    return ImageGroup(paths, torch.cat(images), unreadable)
