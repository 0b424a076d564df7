"""The folder of config options; atomic, durable writing of files."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The folder of config options: inside the package where it is installed, beside it in a checkout.
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.exists())
# Errors of file systems and of Windows that cannot flush a folder.
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}


def write_whole(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Writes a file atomically: to a temporary file that is flushed to the disk and renamed to the path.

    A power failure at any moment leaves the old file or the new one; after the function returns, the new one. Without
    `durable` nothing is flushed: a killed process loses nothing, a power failure may leave an empty file.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes the directory entries of a folder to the disk, where the file system supports that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def write_json(path: Path, content: Mapping[str, Any], durable: bool = True) -> None:
    """Writes a mapping as indented JSON, atomically (see `write_whole`)."""
    write_whole(path, json.dumps(content, indent=2) + "\n", durable)
