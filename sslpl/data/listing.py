"""Lists the image files of a folder or a CSV with their classes and splits."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from csv import DictReader, Error
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sslpl.types import UserError

COLUMNS = ("path", "label", "split")
SPLITS = ("train", "test", "unlabeled")


class ImageFile(NamedTuple):
    """An image file, its label and its split."""

    name: str  # relative to the root with /, or as written in the CSV
    path: str  # on this file system
    label: str | None  # None if unlabeled
    test: bool  # True: test set, False: pool


class ImageListing(NamedTuple):
    """The images of a dataset: the pool, then the test set, each ordered by name."""

    source: str  # the config key and its value, for error messages
    cache: Path  # JSON file that caches what a scan of the images computes
    files: tuple[ImageFile, ...]
    classes: tuple[str, ...]  # sorted

    @property
    def unlabeled(self) -> bool:
        """True if any image is unlabeled."""
        return any(file.label is None for file in self.files)


def list_images(root: str, csv: str | None) -> ImageListing:
    """Lists the images of a CSV, or of a root with train/<class>/, test/<class>/ and maybe unlabeled/; UserError."""
    try:
        return list_root(root) if csv is None else list_csv(csv)
    except (OSError, UnicodeDecodeError, Error) as error:
        raise UserError(f"{f'dataset.root={root}' if csv is None else f'dataset.csv={csv}'}: {error}") from error


def list_root(root: str) -> ImageListing:
    """Lists the images below a root; UserError if it lacks the expected folders."""
    folder, source = Path(root).expanduser(), f"dataset.root={root}"
    if not (folder / "test").is_dir() or not any((folder / part).is_dir() for part in ("train", "unlabeled")):
        raise UserError(
            f"{source}: expected train/<class>/ and test/<class>/ there, perhaps unlabeled/; or dataset.csv"
        )
    files = [ImageFile(name, str(folder / name), None, False) for name in images_below(folder, "unlabeled")]
    class_parts = ("train", "test") if files else ("train",)  # folders whose subfolders define the classes
    classes = {label for part in class_parts for label in subfolders(folder / part)}
    for part in ("train", "test"):
        for label in subfolders(folder / part):
            names = images_below(folder, f"{part}/{label}")
            files += [ImageFile(name, str(folder / name), label, part == "test") for name in names]
        names = [file.name for file in (folder / part).iterdir()] if (folder / part).is_dir() else []
        if stray := [name for name in names if is_image(name)]:
            raise UserError(f"{source}: {part}/{stray[0]} is in no class; expected {part}/<class>/{stray[0]}")
    return validated_listing(ImageListing(source, folder / ".sslpl.json", pool_first(files), tuple(sorted(classes))))


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, without hidden ones; none if the folder does not exist."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path.name for path in paths if path.is_dir() and not path.name.startswith(".")]


def images_below(root: Path, folder: str) -> list[str]:
    """Returns the image files in a folder and its subfolders, relative to the root; hidden ones are skipped."""
    images = []
    for parent, folders, names in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(parent).relative_to(root).as_posix()
        images += [f"{prefix}/{name}" for name in names if is_image(name)]
    return images


def is_image(name: str) -> bool:
    """True if a file name has the suffix of a format that Pillow reads and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes()  # noqa: PTH122


@cache
def suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes of the formats that Pillow reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def list_csv(name: str) -> ImageListing:
    """Lists the images of a CSV with the columns path, label and split; a relative path begins at its folder."""
    path, source = Path(name).expanduser(), f"dataset.csv={name}"
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = DictReader(file)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise UserError(f"{source}: no column {missing[0]}; its first line must name path, label and split")
        files = [row_file(f"{source}: line {reader.line_num}", path.parent, row) for row in reader]
    counts = Counter(os.path.normpath(file.path) for file in files)
    if duplicates := [path for path, count in counts.items() if count > 1]:
        raise UserError(f"{source}: {duplicates[0]} is listed more than once")
    if missing := [file.name for file in files if not os.path.isfile(file.path)]:  # noqa: PTH113
        raise UserError(f"{source}: {missing[0]} is not there ({len(missing):,} of {len(files):,} files are missing)")
    unlabeled = any(file.label is None for file in files)
    classes = {file.label for file in files if file.label is not None and (unlabeled or not file.test)}
    cache_path = path.with_name(f".{path.name}.sslpl.json")
    return validated_listing(ImageListing(source, cache_path, pool_first(files), tuple(sorted(classes))))


def row_file(line: str, folder: Path, row: Mapping[str, str | None]) -> ImageFile:
    """Converts a CSV row to an image file; UserError if the row is invalid."""
    name, label, split = ((row[column] or "").strip() for column in COLUMNS)
    if split not in SPLITS or not name:
        raise UserError(f"{line}: split={split or 'empty'} path={name or 'empty'}: split must be {', '.join(SPLITS)}")
    if (split == "test" and not label) or (split == "unlabeled" and label):
        expected = "a label" if split == "test" else "no label"
        raise UserError(f"{line}: an image of split={split} must have {expected} ({name})")
    return ImageFile(name, str(folder / name), label or None, split == "test")


def pool_first(files: Iterable[ImageFile]) -> tuple[ImageFile, ...]:
    """Sorts the pool before the test set, and each by name, independent of the file system's order."""
    return tuple(sorted(files, key=lambda file: (file.test, os.fsencode(file.name))))


def validated_listing(listing: ImageListing) -> ImageListing:
    """Returns a valid listing unchanged; UserError otherwise. Classes may be empty only if images are unlabeled."""
    source, files = listing.source, listing.files
    for part, test in (("train", False), ("test", True)):
        if not any(file.test is test for file in files):
            raise UserError(f"{source}: no {part} images")
    known, trained = set(listing.classes), {file.label for file in files if not file.test}
    if unknown := sorted({file.label for file in files if file.test and file.label} - known):
        raise UserError(f"{source}: class {unknown[0]} of the test set is not among the train images' {len(known)}")
    if not listing.unlabeled and (empty := sorted(known - trained)):
        raise UserError(f"{source}: class {empty[0]} has no train image")
    return listing
