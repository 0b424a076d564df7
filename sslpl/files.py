"""Files that are either whole or not there."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What file systems and Windows say that cannot flush a folder.
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name, flushes it to the disk, renames it, and flushes the folder's names.

    A power cut at any moment leaves the old file or the new one; after the return, the new one.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, whole."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
