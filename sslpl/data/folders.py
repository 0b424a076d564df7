"""Datasets of image files: your own images from a folder or a CSV, and Caltech-101."""

from typing import Literal

import torch
from torch import Tensor

from sslpl.data.decoding import ImageFormat, image_format, image_reader
from sslpl.data.download import DatasetSource, locate_files
from sslpl.data.images import StreamedImages
from sslpl.data.listing import ImageFile, ImageListing, images_below, list_images, pool_first, subfolders
from sslpl.data.scan import Scan, Statistics, report_damaged, scan_images
from sslpl.seeds import rng, shuffled
from sslpl.types import Count, CountOrZero, Dataset, UserError

CALTECH101 = DatasetSource(
    "Caltech101",
    "caltech101",
    ("101_ObjectCategories",),
    "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip and the archive in it, unpacked)",
)
CALTECH101_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
CALTECH101_TEST = 695 / 8677  # share of its images in the test set


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
    """Loads your own images: train/<class>/, test/<class>/ and unlabeled/ below the root, or the rows of a CSV.

    Mean and standard deviation are computed over the pool, or a sample of 5,000 of its images. By default the cut-out
    has half the side of the image, as in FixMatch at 32 pixels. `fingerprint` is documented at `files_fingerprint`.
    """
    del fingerprint  # compared with the files when the config was resolved
    fmt = image_format(channels, resize, size)
    scan = scan_images(list_images(root, csv), fmt)
    report_damaged(scan.damaged)
    return build_dataset(scan, fmt, scan.statistics(), flip, size // 2 if cutout is None else cutout, padding=size // 8)


def files_fingerprint(root: str, csv: str | None, channels: int, resize: int, size: int) -> str:
    """Hashes names, labels, splits and contents of the readable files to 16 hexadecimal digits."""
    return scan_images(list_images(root, csv), image_format(channels, resize, size)).fingerprint


image_folder.fingerprint = files_fingerprint  # type: ignore[attr-defined]  # part of a run's id


def caltech101(
    root: str = "data",
    resize: Count = 256,
    size: Count = 224,
    flip: bool = True,
    cutout: CountOrZero = 16,
    split_seed: CountOrZero = 0,
    download: bool = True,
) -> Dataset:
    """Loads Caltech-101 (Fei-Fei et al. 2004) without its background class: 7,982 and 695 color images, 101 classes.

    It has no published test set. As in SSLPM the test set is random, but drawn from `split_seed` and not from the run's
    seed, so that all seeds are tested on the same images. Of fewer images the same share is taken.
    """
    fmt = image_format(3, resize, size)
    (folder,) = locate_files(CALTECH101, root, download)
    classes = tuple(sorted(name for name in subfolders(folder) if name != "BACKGROUND_Google"))
    names = sorted((name, label) for label in classes for name in images_below(folder, label))
    if len(names) < 2:
        raise UserError(f"dataset.root={root}: no images in {folder}; get them from {CALTECH101.origin}")
    order = shuffled(torch.arange(len(names)), len(names), rng(split_seed, "caltech101"))
    test = set(order[: max(1, round(CALTECH101_TEST * len(names)))].tolist())
    files = [ImageFile(name, str(folder / name), label, i in test) for i, (name, label) in enumerate(names)]
    listing = ImageListing(f"dataset.root={root}", folder.parent / ".sslpl.json", pool_first(files), classes)
    scan = scan_images(listing, fmt)
    report_damaged(scan.damaged)
    return build_dataset(scan, fmt, CALTECH101_STATISTICS, flip, cutout, padding=4)


def build_dataset(
    scan: Scan, fmt: ImageFormat, statistics: Statistics, flip: bool, cutout: int, padding: int
) -> Dataset:
    """Builds a dataset whose images are read from their files on demand."""
    listing = scan.listing
    pool, test = ([file for file in listing.files if file.test is is_test] for is_test in (False, True))
    sets = [
        StreamedImages(
            image_reader([file.path for file in part], fmt),
            len(part),
            fmt.shape,
            fingerprint=f"{scan.fingerprint} {name} {fmt}",
        )
        for name, part in (("pool", pool), ("test", test))
    ]
    labels = [class_indices(part, listing.classes) for part in (pool, test)]
    fields = (sets[0], labels[0], sets[1], labels[1], listing.classes, *statistics, flip, cutout, padding)
    names, files = tuple(file.name for file in pool), tuple(file.path for file in pool)
    return Dataset(*fields, paths=names, files=files)


def class_indices(files: list[ImageFile], classes: tuple[str, ...]) -> Tensor:
    """Returns the class index of each file, int64 [N], -1 if unlabeled."""
    index: dict[str | None, int] = {name: i for i, name in enumerate(classes)} | {None: -1}
    return torch.tensor([index[file.label] for file in files])
