"""Datasets of image files: a folder or a CSV of one's own, and Caltech-101."""

from typing import Literal

import torch
from torch import Tensor

from sslpl.data.decoding import ImageFormat, image_format, image_reader
from sslpl.data.download import DatasetSource, locate_files
from sslpl.data.images import StreamedImages
from sslpl.data.listing import ImageFile, ImageListing, images_below, list_images, pool_first, subfolders
from sslpl.data.scan import Statistics, report_damaged, scan_images
from sslpl.seeds import rng, shuffled
from sslpl.types import Count, CountOrZero, Dataset, UserError

CALTECH101 = DatasetSource(
    "Caltech101",
    "caltech101",
    ("101_ObjectCategories",),
    "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip and the archive in it, unpacked)",
)
CALTECH101_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
CALTECH101_TEST = 695 / 8677  # of its images


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
    FixMatch's has at 32 pixels, unless it is given. `fingerprint` is that of the files, see `files_fingerprint`.
    """
    del fingerprint  # it was compared with the files when the config was resolved
    shape = image_format(channels, resize, size)
    listing, damaged, _, statistics = scan_images(list_images(root, csv), shape)
    report_damaged(damaged)
    return build_dataset(listing, shape, statistics(), flip, size // 2 if cutout is None else cutout, padding=size // 8)


def files_fingerprint(root: str, csv: str | None, channels: int, resize: int, size: int) -> str:
    """Hashes names, labels, splits and contents of the files that can be read: 16 hexadecimal digits."""
    return scan_images(list_images(root, csv), image_format(channels, resize, size)).fingerprint


image_folder.fingerprint = files_fingerprint  # type: ignore[attr-defined]  # it counts in a run's id


def caltech101(
    root: str = "data",
    resize: Count = 256,
    size: Count = 224,
    flip: bool = True,
    cutout: CountOrZero = 16,
    split_seed: CountOrZero = 0,
    download: bool = True,
) -> Dataset:
    """Caltech-101 (Fei-Fei et al. 2004) without its background class: 7,982 and 695 color images, 101 classes.

    It has no test set of its own. SSLPM's is a random one: drawn here from `split_seed`, not from the run's seed, so
    that all seeds are tested on the same images and differ in what a seed is for. Of fewer images as large a share.
    """
    shape = image_format(3, resize, size)
    (folder,) = locate_files(CALTECH101, root, download)
    classes = tuple(sorted(name for name in subfolders(folder) if name != "BACKGROUND_Google"))
    names = sorted((name, label) for label in classes for name in images_below(folder, label))
    if len(names) < 2:
        raise UserError(f"dataset.root={root}: no images in {folder}; get them from {CALTECH101.origin}")
    order = shuffled(torch.arange(len(names)), len(names), rng(split_seed, "caltech101"))
    test = set(order[: max(1, round(CALTECH101_TEST * len(names)))].tolist())
    files = [ImageFile(name, str(folder / name), label, place in test) for place, (name, label) in enumerate(names)]
    listing = ImageListing(f"dataset.root={root}", folder.parent / ".sslpl.json", pool_first(files), classes)
    listing, damaged, *_ = scan_images(listing, shape)
    report_damaged(damaged)
    return build_dataset(listing, shape, CALTECH101_STATISTICS, flip, cutout, padding=4)


def build_dataset(
    listing: ImageListing, shape: ImageFormat, statistics: Statistics, flip: bool, cutout: int, padding: int
) -> Dataset:
    """A dataset whose images are read from their files when they are asked for."""
    pool, test = ([file for file in listing.files if file.test is part] for part in (False, True))
    sets = [
        StreamedImages(image_reader([file.path for file in part], shape), len(part), shape.shape)
        for part in (pool, test)
    ]
    labels = [class_indices(part, listing.classes) for part in (pool, test)]
    known = (sets[0], labels[0], sets[1], labels[1], listing.classes, *statistics, flip, cutout, padding)
    return Dataset(*known, paths=tuple(file.name for file in pool))


def class_indices(files: list[ImageFile], classes: tuple[str, ...]) -> Tensor:
    """The class [N] of each file, -1 where nobody has told."""
    number: dict[str | None, int] = {name: place for place, name in enumerate(classes)} | {None: -1}
    return torch.tensor([number[file.label] for file in files])
