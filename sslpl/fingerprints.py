"""Fingerprints of files: content hashes, recomputed only if size or modification time has changed."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sslpl.files import write_whole

DIGITS = 16  # hexadecimal digits of SHA-256 that are kept
LARGE = 2**24  # bytes; the fingerprint of a file of this size or more is cached in a file next to it


class FileState(NamedTuple):
    """Size in bytes and modification time of a file: a cheap test for whether it has changed."""

    size: int
    mtime_ns: int


def file_state(path: str | Path) -> FileState:
    """Returns the size and modification time of a file; OSError if there is none."""
    status = os.stat(path)  # noqa: PTH116
    return FileState(status.st_size, status.st_mtime_ns)


def content_digest(path: str | Path) -> str:
    """Hashes the content of a file, read in chunks; OSError if it cannot be read."""
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def joint_fingerprint(digests: Mapping[str, str]) -> str:
    """Hashes the names and content digests of several files to one."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:DIGITS]


def file_fingerprint(path: Path) -> str:
    """Returns the content digest of a file, cached next to a large file while that is unchanged; OSError."""
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
