"""Which files a folder or a CSV of images holds, of which class and for what."""

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
    """An image file."""

    name: str  # below the root with /, or as the CSV gives it
    path: str  # where it is
    label: str | None  # None where nobody has told
    test: bool  # else it belongs to the pool


class ImageListing(NamedTuple):
    """The images of a data set, ordered by name, the pool's first."""

    source: str  # the key and its value, for messages
    kept: Path  # what is found out about the files is kept there
    files: tuple[ImageFile, ...]
    classes: tuple[str, ...]  # sorted

    @property
    def unlabeled(self) -> bool:
        """Whether it holds images that nobody has labeled."""
        return any(file.label is None for file in self.files)


def list_images(root: str, csv: str | None) -> ImageListing:
    """The images of a CSV, or of a root with train/<class>/, test/<class>/ and perhaps unlabeled/; UserError."""
    try:
        return from_root(root) if csv is None else from_csv(csv)
    except (OSError, UnicodeDecodeError, Error) as error:
        raise UserError(f"{f'dataset.root={root}' if csv is None else f'dataset.csv={csv}'}: {error}") from error


def from_root(root: str) -> ImageListing:
    """The images below a root."""
    folder, source = Path(root).expanduser(), f"dataset.root={root}"
    if not (folder / "test").is_dir() or not any((folder / part).is_dir() for part in ("train", "unlabeled")):
        raise UserError(
            f"{source}: expected train/<class>/ and test/<class>/ there, perhaps unlabeled/; or dataset.csv"
        )
    files = [ImageFile(name, str(folder / name), None, False) for name in images_below(folder, "unlabeled")]
    naming = ("train", "test") if files else ("train",)  # folders whose subfolders name the classes
    classes = {label for part in naming for label in subfolders(folder / part)}
    for part in ("train", "test"):
        for label in subfolders(folder / part):
            below = images_below(folder, f"{part}/{label}")
            files += [ImageFile(name, str(folder / name), label, part == "test") for name in below]
        if (folder / part).is_dir() and (stray := [x.name for x in (folder / part).iterdir() if is_image(x.name)]):
            raise UserError(f"{source}: {part}/{stray[0]} is in no class; expected {part}/<class>/{stray[0]}")
    return validated_listing(ImageListing(source, folder / ".sslpl.json", pool_first(files), tuple(sorted(classes))))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without the hidden ones; none where there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path.name for path in found if path.is_dir() and not path.name.startswith(".")]


def images_below(root: Path, folder: str) -> list[str]:
    """Names below the root of the image files in a folder and in the folders below it, without hidden ones."""
    found = []
    for parent, folders, names in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(parent).relative_to(root).as_posix()
        found += [f"{prefix}/{name}" for name in names if is_image(name)]
    return found


def is_image(name: str) -> bool:
    """Whether a file's name is one of an image that Pillow reads."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes()  # noqa: PTH122


@cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that Pillow reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def from_csv(name: str) -> ImageListing:
    """The images of a CSV file with the columns path, label and split; paths are absolute or begin at its folder."""
    path, source = Path(name).expanduser(), f"dataset.csv={name}"
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = DictReader(file)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise UserError(f"{source}: no column {missing[0]}; its first line must name path, label and split")
        files = [row_file(f"{source}: line {reader.line_num}", path.parent, row) for row in reader]
    doubled = [found for found, count in Counter(os.path.normpath(file.path) for file in files).items() if count > 1]
    if doubled:
        raise UserError(f"{source}: {doubled[0]} is listed more than once")
    if missing := [file.name for file in files if not os.path.isfile(file.path)]:  # noqa: PTH113
        raise UserError(f"{source}: {missing[0]} is not there ({len(missing):,} of {len(files):,} files are missing)")
    free = any(file.label is None for file in files)
    classes = {file.label for file in files if file.label is not None and (free or not file.test)}
    kept = path.with_name(f".{path.name}.sslpl.json")
    return validated_listing(ImageListing(source, kept, pool_first(files), tuple(sorted(classes))))


def row_file(where: str, folder: Path, row: Mapping[str, str | None]) -> ImageFile:
    """The file of a row; UserError if the row cannot be."""
    name, label, split = ((row[column] or "").strip() for column in COLUMNS)
    if split not in SPLITS or not name:
        raise UserError(f"{where}: split={split or 'empty'} path={name or 'empty'}: split must be {', '.join(SPLITS)}")
    if (split == "test" and not label) or (split == "unlabeled" and label):
        wanted = "a label" if split == "test" else "no label"
        raise UserError(f"{where}: an image of split={split} must have {wanted} ({name})")
    return ImageFile(name, str(folder / name), label or None, split == "test")


def pool_first(files: Iterable[ImageFile]) -> tuple[ImageFile, ...]:
    """The pool, then the test set, each by name, wherever they were found."""
    return tuple(sorted(files, key=lambda file: (file.test, os.fsencode(file.name))))


def validated_listing(listing: ImageListing) -> ImageListing:
    """The same; UserError if it lacks what a run needs. A class may be empty where labels are still to be told."""
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
