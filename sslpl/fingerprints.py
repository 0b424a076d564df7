"""Fingerprints of files: hashes of their content, computed again only where size or modification time has changed."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sslpl.files import write_whole

DIGITS = 16  # hexadecimal, of SHA-256
LARGE = 2**24  # bytes from which on a fingerprint is cached beside its file


class FileState(NamedTuple):
    """What changes when a file does, told without reading it."""

    size: int
    mtime_ns: int


def file_state(path: str | Path) -> FileState:
    """Size and modification time of a file; OSError without one."""
    status = os.stat(path)  # noqa: PTH116
    return FileState(status.st_size, status.st_mtime_ns)


def content_digest(path: str | Path) -> str:
    """Hashes the content of a file, read in pieces; OSError if it cannot be read."""
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def file_fingerprint(path: Path) -> str:
    """Returns the digest of a file's content, from the cache beside a large file while it holds; OSError."""
    state, cache = file_state(path), path.with_name(f".{path.name}.sslpl.json")
    if state.size < LARGE:
        return content_digest(path)
    with suppress(OSError, ValueError, TypeError):
        size, mtime_ns, digest = json.loads(cache.read_text())
        if (size, mtime_ns) == state and isinstance(digest, str):
            return digest
    digest = content_digest(path)
    with suppress(OSError):
        write_whole(cache, json.dumps([*state, digest]))
    return digest
