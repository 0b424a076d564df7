"""Where the files of published datasets lie, and their download."""

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

SILENCE_SECONDS = 10  # a server that is silent for longer counts as unreachable


class DatasetSource(NamedTuple):
    """The files of a dataset as torchvision's reader of the same name lays them out."""

    name: str
    folder: str  # below the root; the root itself may hold the files instead
    files: tuple[str, ...]  # or folders
    origin: str  # where a user finds them
    parts: tuple[str, ...] = ()  # that the reader downloads one by one, as its `split`


def locate_files(source: DatasetSource, root: str, download: bool) -> list[Path]:
    """The files of `source` in its order, found in the root or below it, else downloaded."""
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
    places = f"there or in {source.folder}" if source.folder else "there"
    raise UserError(
        f"dataset.root={root}: {source.name} not found: expected {', '.join(source.files)} {places}; "
        f"{reason}; get them from {source.origin}"
    )


def _find(source: DatasetSource, root: Path) -> list[Path]:
    for folder in (root / source.folder, root):
        plain = [folder / name for name in source.files]
        paths = [path if path.exists() else path.with_name(f"{path.name}.gz") for path in plain]
        if all(path.exists() for path in paths):
            return paths
    return []


def _download(source: DatasetSource, root: Path) -> None:
    from torchvision import datasets  # here: it takes a second to import, and most runs have their files

    reader, timeout = getattr(datasets, source.name), getdefaulttimeout()
    parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with TemporaryDirectory(prefix=".download-", dir=parent) as folder, redirect_stderr(bars):
        setdefaulttimeout(SILENCE_SECONDS)  # torchvision sets none
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
    try:
        yield
    except Exception as error:  # a damaged pickle raises anything
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        raise UserError(
            f"dataset.root={root}: cannot read {path} ({reason}); replace it from {source.origin}"
        ) from error
