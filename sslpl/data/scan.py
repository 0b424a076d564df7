"""Scans image files once and caches their content digests, which are damaged, and the pixel statistics of the rest."""

import hashlib
import json
import os
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
from sslpl.messages import print_notice
from sslpl.types import UserError

T = TypeVar("T")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, pixels in 0..1
SAMPLE = 5000  # images of the pool, evenly spaced, over which the statistics are computed
MAX_NAMED_FILES = 3  # damaged files that a message names


class FileRecord(NamedTuple):
    """Scan result of a file, valid as long as its size and modification time do not change."""

    size: int
    mtime_ns: int
    digest: str  # hash of its content
    damage: str | None  # why it cannot be decoded; None if it can

    @property
    def state(self) -> FileState:
        """Returns the size and modification time when the file was read."""
        return FileState(self.size, self.mtime_ns)


class Scan(NamedTuple):
    """Result of a scan: the readable files of a listing, and what was computed from them."""

    listing: ImageListing
    damaged: dict[str, str]  # file name -> why it cannot be read
    fingerprint: str  # hash of names, labels, splits and contents of the readable files
    statistics: Callable[[], Statistics]  # of the pool, in the target format


def scan_images(listing: ImageListing, fmt: ImageFormat) -> Scan:
    """Reads every file of a listing and excludes the damaged ones; UserError if too few remain.

    Results are cached next to the images, and a file is read again only if its size or modification time has changed;
    if the cache cannot be written, each process reads all files.
    """
    try:
        states = tuple(file_state(file.path) for file in listing.files)
        records = file_records(listing.cache, listing.files, states, fmt)
    except OSError as error:
        raise UserError(f"{listing.source}: {error}") from error
    damaged = {name: record.damage for name, record in records.items() if record.damage is not None}
    readable = tuple(file for file in listing.files if file.name not in damaged)
    pool = tuple(file for file in readable if not file.test)
    content = lines_digest(records[file.name].digest for file in pool)
    return Scan(
        validated_listing(listing._replace(files=readable)),
        damaged,
        fingerprint(readable, records),
        partial(pixel_statistics, listing.cache, content, pool, fmt),
    )


def fingerprint(files: Iterable[ImageFile], records: Mapping[str, FileRecord]) -> str:
    """Hashes names, labels, splits and contents to 16 hexadecimal digits, independent of where the files lie."""
    return lines_digest(f"{file.name}\0{file.label or ''}\0{file.test}\0{records[file.name].digest}" for file in files)


def lines_digest(lines: Iterable[str]) -> str:
    """Hashes lines to 16 hexadecimal digits."""
    content = hashlib.sha256()
    for line in lines:
        content.update(os.fsencode(line) + b"\n")
    return content.hexdigest()[:DIGITS]


@lru_cache(maxsize=8)  # a run needs them twice, and the cache file may not be writable
def file_records(
    cache: Path, files: tuple[ImageFile, ...], states: tuple[FileState, ...], fmt: ImageFormat
) -> dict[str, FileRecord]:
    """Returns the record of each file by name; files that are new or have changed are read and decoded."""
    known = cached_records(cache)
    stale = [
        file
        for file, state in zip(files, states, strict=True)
        if file.name not in known or known[file.name].state != state
    ]
    if stale:
        print_notice(f"reading {len(stale):,} image files, once")
        known |= zip((file.name for file in stale), map_parallel(partial(file_record, fmt=fmt), stale), strict=True)
        cache_values(cache, files={file.name: known[file.name] for file in files})
    return {file.name: known[file.name] for file in files}


def cached_records(cache: Path) -> dict[str, FileRecord]:
    """Reads the records from a cache file, by image name; empty if the file is missing or corrupt."""
    try:
        return {name: FileRecord(*values) for name, values in cached_values(cache)["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def file_record(file: ImageFile, fmt: ImageFormat) -> FileRecord:
    """Reads and decodes a file; OSError if it cannot be read at all."""
    return FileRecord(*file_state(file.path), content_digest(file.path), decoding_error(file, fmt))


def decoding_error(file: ImageFile, fmt: ImageFormat) -> str | None:
    """Returns why a file cannot be decoded, None if it can; OSError if it cannot be read at all."""
    try:
        open_image(file.path, fmt)
    except Exception as error:  # a damaged file raises anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return shorten(str(error).replace(file.path, file.name) or type(error).__name__, 120)
    return None


def report_damaged(damaged: dict[str, str]) -> None:
    """Prints on standard error how many damaged files are left out, and names the first ones."""
    if damaged:
        first = "; ".join(f"{name} ({reason})" for name, reason in list(damaged.items())[:MAX_NAMED_FILES])
        more = "; ..." if len(damaged) > MAX_NAMED_FILES else ""
        line = f"damaged image files are left out: {len(damaged):,} ({first}{more})"
        print_notice(line.encode(errors="replace").decode())


@lru_cache(maxsize=8)
def pixel_statistics(cache: Path, content: str, pool: tuple[ImageFile, ...], fmt: ImageFormat) -> Statistics:
    """Returns mean and standard deviation of a pool, rounded to four digits and cached by a digest of its content."""
    key = " ".join([content, "x".join(map(str, fmt))])
    known = cached_values(cache).get("statistics")
    known = known if isinstance(known, dict) else {}
    if key not in known:
        same_content = {other: values for other, values in known.items() if other.startswith(content)}
        known = same_content | {key: measure_statistics(pool, fmt)}
        cache_values(cache, statistics=known)
    mean, std = known[key]
    return tuple(mean), tuple(std)


def measure_statistics(pool: Sequence[ImageFile], fmt: ImageFormat) -> list[list[float]]:
    """Computes mean and standard deviation of each channel, on a sample if the pool is large."""
    sample = pool[:: -(-len(pool) // SAMPLE)]
    counts = sum(map_parallel(partial(histogram, fmt=fmt), sample), np.zeros((fmt.channels, 256), np.int64))
    frequency, value = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = frequency @ value
    std = np.sqrt(frequency @ value**2 - mean**2).clip(1 / 255)  # positive even if all pixels have one color
    return [mean.round(4).tolist(), std.round(4).tolist()]


def histogram(file: ImageFile, fmt: ImageFormat) -> NDArray[np.int64]:
    """Counts each pixel value in each channel of an image, int64 [C, 256]."""
    return np.array(open_image(file.path, fmt).histogram()).reshape(fmt.channels, 256)


def map_parallel(function: Callable[[ImageFile], T], files: Iterable[ImageFile]) -> Iterator[T]:
    """Yields the function's result for each file in order, on one thread per usable core."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        yield from threads.map(function, files)


def cached_values(path: Path) -> dict[str, Any]:
    """Reads a JSON cache file; empty if the file is missing or corrupt."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def cache_values(path: Path, **values: Any) -> None:
    """Replaces some entries of a JSON cache file, if it can be written."""
    known = {key: value for key, value in cached_values(path).items() if key in ("files", "statistics")}
    with suppress(OSError):
        write_whole(path, json.dumps(known | values, separators=(",", ":")))
