"""What is found out once about image files: which are damaged, the mean and deviation of the others."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sslpl.data.decoding import Form, opened
from sslpl.data.images import cores
from sslpl.data.listing import File, Listing, checked
from sslpl.recording.files import write_whole
from sslpl.types import UserError

T = TypeVar("T")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, pixels in 0..1
SAMPLE = 5000  # images of the pool, evenly spread, over which they are measured
NAMED = 3  # damaged files that are named


class Survey(NamedTuple):
    """The files of a listing that can be read, and what was found out."""

    listing: Listing
    damaged: dict[str, str]  # why a file cannot be read, by name
    statistics: Callable[[], Statistics]  # of the pool, in the form


def surveyed(listing: Listing, form: Form) -> Survey:
    """Leaves damaged files out of a listing; UserError if too few are left.

    What was found is kept beside the images and holds until a file's name, size or date changes; where nothing can
    be written each process finds it out anew.
    """
    try:
        state = digest(file_state(file) for file in listing.files)
        damaged = damaged_files(listing.kept, state, listing.files, form)
    except OSError as error:
        raise UserError(f"{listing.source}: {error}") from error
    left = tuple(file for file in listing.files if file.name not in damaged)
    pool = tuple(file for file in left if not file.test)
    return Survey(checked(listing._replace(files=left)), damaged, partial(statistics, listing.kept, state, pool, form))


def file_state(file: File) -> str:
    """What changes when a file does."""
    status = os.stat(file.path)  # noqa: PTH116
    return f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}"


def fingerprint(listing: Listing) -> str:
    """8 hexadecimal digits of a hash over names, labels and splits: the same wherever the files lie."""
    return digest(f"{file.name}\0{file.label or ''}\0{file.test}" for file in listing.files)


def digest(lines: Iterable[str]) -> str:
    """8 hexadecimal digits of a hash over lines."""
    content = hashlib.sha256()
    for line in lines:
        content.update(os.fsencode(line) + b"\n")
    return content.hexdigest()[:8]


@lru_cache(maxsize=8)  # a run asks twice, and perhaps nothing can be written
def damaged_files(kept: Path, state: str, files: tuple[File, ...], form: Form) -> dict[str, str]:
    """Why files cannot be decoded, by name; decodes them all unless it is known."""

    def find() -> dict[str, str]:
        print(f"sslpl: looking for damage in {len(files):,} image files, once", file=sys.stderr, flush=True)
        reasons = in_parallel(partial(damage, form=form), files)
        return {file.name: reason for file, reason in zip(files, reasons, strict=True) if reason is not None}

    known: dict[str, str] = remembered(kept, state, "damaged", find)
    return known


def damage(file: File, form: Form) -> str | None:
    """Why a file cannot be decoded; OSError if it cannot even be read."""
    try:
        opened(file.path, form)
    except Exception as error:  # a damaged file raises anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return shorten(str(error).replace(file.path, file.name) or type(error).__name__, 120)
    return None


def tell(damaged: dict[str, str]) -> None:
    """Names the first damaged files on standard error, and says how many are left out."""
    if damaged:
        first = "; ".join(f"{name} ({why})" for name, why in list(damaged.items())[:NAMED])
        more = "; ..." if len(damaged) > NAMED else ""
        line = f"damaged image files are left out: {len(damaged):,} ({first}{more})"
        print(f"sslpl: {line.encode(errors='replace').decode()}", file=sys.stderr, flush=True)


@lru_cache(maxsize=8)
def statistics(kept: Path, state: str, pool: tuple[File, ...], form: Form) -> Statistics:
    """Mean and standard deviation of a pool's images, to four digits; of a sample of a large pool."""

    def find() -> list[list[float]]:
        sample = pool[:: -(-len(pool) // SAMPLE)]
        counts = sum(in_parallel(partial(histogram, form=form), sample), np.zeros((form.channels, 256), np.int64))
        share, value = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
        mean = share @ value
        deviation = np.sqrt(share @ value**2 - mean**2).clip(1 / 255)  # above 0 where all images are of one color
        return [mean.round(4).tolist(), deviation.round(4).tolist()]

    mean, std = remembered(kept, state, "statistics " + "x".join(map(str, form)), find)
    return tuple(mean), tuple(std)


def histogram(file: File, form: Form) -> NDArray[np.int64]:
    """How often each value occurs in each channel of an image, [C, 256]."""
    return np.array(opened(file.path, form).histogram()).reshape(form.channels, 256)


def in_parallel(function: Callable[[File], T], files: Iterable[File]) -> Iterator[T]:
    """The function's value of each file, in order: Pillow decodes on as many threads as there are cores."""
    with ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(function, files)


def remembered(path: Path, state: str, key: str, find: Callable[[], Any]) -> Any:
    """What a file says under a key for a state of the images; what it does not say is found out and written."""
    try:
        known = json.loads(path.read_text())
        known = known if known["state"] == state else {"state": state}
    except (OSError, ValueError, KeyError, TypeError):
        known = {"state": state}
    if key not in known:
        known[key] = find()
        with suppress(OSError):
            write_whole(path, json.dumps(known))
    return known[key]
