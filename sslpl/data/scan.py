"""What is found out once about image files: their content, which are damaged, the mean and deviation of the others."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sslpl.data.decoding import ImageFormat, open_image
from sslpl.data.images import usable_cores
from sslpl.data.listing import ImageFile, ImageListing, validated_listing
from sslpl.files import write_whole
from sslpl.fingerprints import DIGITS, FileState, content_digest, file_state
from sslpl.types import UserError

T = TypeVar("T")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, pixels in 0..1
SAMPLE = 5000  # images of the pool, evenly spread, over which they are measured
NAMED = 3  # damaged files that are named


class FileRecord(NamedTuple):
    """What is known of a file while its size and modification time stay the same."""

    size: int
    mtime_ns: int
    digest: str  # of its content
    damage: str | None  # why it cannot be decoded

    @property
    def state(self) -> FileState:
        """Size and modification time when it was read."""
        return FileState(self.size, self.mtime_ns)


class Scan(NamedTuple):
    """The files of a listing that can be read, and what was found out."""

    listing: ImageListing
    damaged: dict[str, str]  # why a file cannot be read, by name
    fingerprint: str  # of names, labels, splits and contents of the others
    statistics: Callable[[], Statistics]  # of the pool, in the form


def scan_images(listing: ImageListing, form: ImageFormat) -> Scan:
    """Leaves damaged files out of a listing; UserError if too few are left.

    What was found is kept beside the images, and a file is read again once its size or modification time changes; where
    nothing can be written each process reads all of them.
    """
    try:
        states = tuple(file_state(file.path) for file in listing.files)
        records = file_records(listing.kept, listing.files, states, form)
    except OSError as error:
        raise UserError(f"{listing.source}: {error}") from error
    damaged = {name: record.damage for name, record in records.items() if record.damage is not None}
    left = tuple(file for file in listing.files if file.name not in damaged)
    pool = tuple(file for file in left if not file.test)
    content = lines_digest(records[file.name].digest for file in pool)
    return Scan(
        validated_listing(listing._replace(files=left)),
        damaged,
        fingerprint(left, records),
        partial(pixel_statistics, listing.kept, content, pool, form),
    )


def fingerprint(files: Iterable[ImageFile], records: Mapping[str, FileRecord]) -> str:
    """Hashes names, labels, splits and contents: 16 hexadecimal digits, the same wherever the files lie."""
    return lines_digest(f"{file.name}\0{file.label or ''}\0{file.test}\0{records[file.name].digest}" for file in files)


def lines_digest(lines: Iterable[str]) -> str:
    """16 hexadecimal digits of a hash over lines."""
    content = hashlib.sha256()
    for line in lines:
        content.update(os.fsencode(line) + b"\n")
    return content.hexdigest()[:DIGITS]


@lru_cache(maxsize=8)  # a run asks twice, and perhaps nothing can be written
def file_records(
    kept: Path, files: tuple[ImageFile, ...], states: tuple[FileState, ...], form: ImageFormat
) -> dict[str, FileRecord]:
    """What is known of each file, by name; reads and decodes those that are new or have changed."""
    known = cached_records(kept)
    fresh = [
        file
        for file, state in zip(files, states, strict=True)
        if file.name not in known or known[file.name].state != state
    ]
    if fresh:
        print(f"sslpl: reading {len(fresh):,} image files, once", file=sys.stderr, flush=True)
        known |= zip((file.name for file in fresh), map_parallel(partial(file_record, form=form), fresh), strict=True)
        cache_values(kept, files={file.name: known[file.name] for file in files})
    return {file.name: known[file.name] for file in files}


def cached_records(kept: Path) -> dict[str, FileRecord]:
    """The records of a file, by the images' names; none if there is no such file or a spoilt one."""
    try:
        return {name: FileRecord(*values) for name, values in cached_values(kept)["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def file_record(file: ImageFile, form: ImageFormat) -> FileRecord:
    """Reads and decodes a file; OSError if it cannot even be read."""
    return FileRecord(*file_state(file.path), content_digest(file.path), decoding_error(file, form))


def decoding_error(file: ImageFile, form: ImageFormat) -> str | None:
    """Why a file cannot be decoded; OSError if it cannot even be read."""
    try:
        open_image(file.path, form)
    except Exception as error:  # a damaged file raises anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return shorten(str(error).replace(file.path, file.name) or type(error).__name__, 120)
    return None


def report_damaged(damaged: dict[str, str]) -> None:
    """Names the first damaged files on standard error, and says how many are left out."""
    if damaged:
        first = "; ".join(f"{name} ({why})" for name, why in list(damaged.items())[:NAMED])
        more = "; ..." if len(damaged) > NAMED else ""
        line = f"damaged image files are left out: {len(damaged):,} ({first}{more})"
        print(f"sslpl: {line.encode(errors='replace').decode()}", file=sys.stderr, flush=True)


@lru_cache(maxsize=8)
def pixel_statistics(kept: Path, content: str, pool: tuple[ImageFile, ...], form: ImageFormat) -> Statistics:
    """Mean and standard deviation of a pool's images, to four digits, while their content stays the same."""
    key = " ".join([content, "x".join(map(str, form))])
    known = cached_values(kept).get("statistics")
    known = known if isinstance(known, dict) else {}
    if key not in known:
        known = {old: values for old, values in known.items() if old.startswith(content)} | {
            key: measure_statistics(pool, form)
        }
        cache_values(kept, statistics=known)
    mean, std = known[key]
    return tuple(mean), tuple(std)


def measure_statistics(pool: Sequence[ImageFile], form: ImageFormat) -> list[list[float]]:
    """Mean and standard deviation of each channel, over a sample of a large pool."""
    sample = pool[:: -(-len(pool) // SAMPLE)]
    counts = sum(map_parallel(partial(histogram, form=form), sample), np.zeros((form.channels, 256), np.int64))
    share, value = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    deviation = np.sqrt(share @ value**2 - mean**2).clip(1 / 255)  # above 0 where all images are of one color
    return [mean.round(4).tolist(), deviation.round(4).tolist()]


def histogram(file: ImageFile, form: ImageFormat) -> NDArray[np.int64]:
    """How often each value occurs in each channel of an image, [C, 256]."""
    return np.array(open_image(file.path, form).histogram()).reshape(form.channels, 256)


def map_parallel(function: Callable[[ImageFile], T], files: Iterable[ImageFile]) -> Iterator[T]:
    """The function's value of each file, in order: Pillow decodes on as many threads as there are cores."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        yield from threads.map(function, files)


def cached_values(path: Path) -> dict[str, Any]:
    """What was kept in a file; nothing if there is no such file or a spoilt one."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def cache_values(path: Path, **values: Any) -> None:
    """Replaces some of what is kept in a file, if it can be written."""
    known = {key: value for key, value in cached_values(path).items() if key in ("files", "statistics")}
    with suppress(OSError):
        write_whole(path, json.dumps(known | values, separators=(",", ":")))
