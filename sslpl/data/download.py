"""Finds the files of published datasets, and downloads them if they are missing."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from http.client import HTTPException
from pathlib import Path
from socket import getdefaulttimeout, setdefaulttimeout
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import NamedTuple

from sslpl.types import UserError

SILENCE_SECONDS = 10  # a server that does not respond for longer counts as unreachable


class DatasetSource(NamedTuple):
    """The files of a dataset as torchvision's reader of the same name lays them out."""

    name: str
    folder: str  # below the root; the files may also lie in the root itself
    files: tuple[str, ...]  # or folders
    origin: str  # where a user can download them, for error messages
    parts: tuple[str, ...] = ()  # values of the reader's `split` that are downloaded one by one


def locate_files(source: DatasetSource, root: str, download: bool) -> list[Path]:
    """Returns the paths of a source's files in its order, found in or below the root or else downloaded; UserError."""
    folder = Path(root).expanduser()
    reason = "download failed (files are missing)" if download else "dataset.download=false"
    try:
        if not (paths := _find(source, folder)) and download:
            _download(source, folder)
            paths = _find(source, folder)
    except (OSError, RuntimeError, HTTPException) as error:
        paths, reason = [], f"download failed ({shorten(str(error), 300)})"
    if paths:
        return paths
    locations = f"there or in {source.folder}" if source.folder else "there"
    raise UserError(
        f"dataset.root={root}: {source.name} not found: expected {', '.join(source.files)} {locations}; "
        f"{reason}; get them from {source.origin}"
    )


def _find(source: DatasetSource, root: Path) -> list[Path]:
    for folder in (root / source.folder, root):
        unpacked = [folder / name for name in source.files]
        paths = [path if path.exists() else path.with_name(f"{path.name}.gz") for path in unpacked]
        if all(path.exists() for path in paths):
            return paths
    return []


def _download(source: DatasetSource, root: Path) -> None:
    from torchvision import datasets  # imported late: it takes a second, and most runs have their files

    reader, timeout = getattr(datasets, source.name), getdefaulttimeout()
    parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with TemporaryDirectory(prefix=".download-", dir=parent) as folder, redirect_stderr(progress):
        setdefaulttimeout(SILENCE_SECONDS)  # torchvision sets no timeout
        try:
            for keys in [{"split": part} for part in source.parts] or [{}]:
                reader(folder, download=True, **keys)
        finally:
            setdefaulttimeout(timeout)
        (root / source.folder).mkdir(parents=True, exist_ok=True)
        for name in source.files:
            Path(folder, source.folder, name).replace(root / source.folder / name)


@contextmanager
def damaged_file_error(source: DatasetSource, root: str, path: Path) -> Iterator[None]:
    """Converts any exception inside into a UserError that names the damaged file and where to get it again."""
    try:
        yield
    except Exception as error:  # a damaged pickle raises anything
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        raise UserError(
            f"dataset.root={root}: cannot read {path} ({reason}); replace it from {source.origin}"
        ) from error
