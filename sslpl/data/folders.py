"""Datasets of image files: a folder or a CSV of one's own, and Caltech-101."""

from typing import Literal

import torch
from torch import Tensor

from sslpl.data.decoding import Form, form, reader
from sslpl.data.images import StreamedImages
from sslpl.data.listing import File, Listing, listed
from sslpl.data.survey import Statistics, fingerprint, surveyed, tell
from sslpl.types import Count, CountOrZero, Dataset


def image_folder(
    root: str = "data",
    csv: str | None = None,
    channels: Literal[1, 3] = 3,
    resize: Count = 256,
    size: Count = 224,
    flip: bool = True,
    cutout: CountOrZero | None = None,
    fingerprint: str | None = None,
) -> Dataset:
    """Images of one's own: train/<class>/, test/<class>/ and unlabeled/ below the root, or the rows of a CSV.

    Mean and deviation are measured over the pool (over 5,000 images of a larger one). The cut-out has half the side, as
    FixMatch's has at 32 pixels, unless it is given. `fingerprint` is that of the files, see `file_fingerprint`.
    """
    del fingerprint  # it was compared with the files when the config was resolved
    shape = form(channels, resize, size)
    listing, damaged, statistics = surveyed(listed(root, csv), shape)
    tell(damaged)
    return dataset_of(listing, shape, statistics(), flip, size // 2 if cutout is None else cutout, padding=size // 8)


def file_fingerprint(root: str, csv: str | None, channels: int, resize: int, size: int) -> str:
    """8 hexadecimal digits of a hash over names, labels and splits of the files that can be read."""
    return fingerprint(surveyed(listed(root, csv), form(channels, resize, size)).listing)


image_folder.fingerprint = file_fingerprint  # type: ignore[attr-defined]  # it counts in a run's id


def dataset_of(listing: Listing, shape: Form, statistics: Statistics, flip: bool, cutout: int, padding: int) -> Dataset:
    """A dataset whose images are read from their files when they are asked for."""
    pool, test = ([file for file in listing.files if file.test is part] for part in (False, True))
    sets = [
        StreamedImages(reader([file.path for file in part], shape), len(part), shape.shape) for part in (pool, test)
    ]
    labels = [class_numbers(part, listing.classes) for part in (pool, test)]
    known = (sets[0], labels[0], sets[1], labels[1], listing.classes, *statistics, flip, cutout, padding)
    return Dataset(*known, paths=tuple(file.name for file in pool))


def class_numbers(files: list[File], classes: tuple[str, ...]) -> Tensor:
    """The class [N] of each file, -1 where nobody has told."""
    number: dict[str | None, int] = {name: place for place, name in enumerate(classes)} | {None: -1}
    return torch.tensor([number[file.label] for file in files])
