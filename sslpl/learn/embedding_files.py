"""Files of embeddings: written in pieces, continued after a kill, and kept for every run that needs the same ones."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from sslpl.files import sync_folder, write_json
from sslpl.fingerprints import file_fingerprint
from sslpl.learn.embedding import Embedder, Floats, embedding_batches, embedding_key
from sslpl.messages import print_notice
from sslpl.types import Images

SAVE_SECONDS = 5.0  # longest time of work that a kill loses
LINE_SECONDS = 30.0  # the time between two lines about a long computation
Report = Callable[[int, int], None]  # rows that are done, of so many


def cached_embeddings(folder: Path, embedder: Embedder, images: Images) -> Tensor:
    """Returns the embeddings [N, D] of images, mapped from a file that the first process computes.

    The file is named after the embedding key, so that another network, preprocessing or set of images has another.
    """
    path = folder / f"{embedding_key(embedder, images)}.npy"
    rows = read_finished(path)
    if rows is None:
        with lock_while_computing(path):
            rows = read_finished(path, reports_damage=True)
            if rows is None:
                print_notice(f"{len(images):,} images are embedded once, into {path}")
                write_finished(path, embedder, images)
                rows = read_finished(path)
    assert rows is not None
    return rows


@contextmanager
def lock_while_computing(path: Path) -> Iterator[None]:
    """Waits until no other process computes a file. The lock file is removed: who comes later finds a finished file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        yield
    lock.unlink(missing_ok=True)


def read_finished(path: Path, reports_damage: bool = False) -> Tensor | None:
    """Maps a finished file of embeddings; None if it is missing or its content is not the one that was written."""
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads(record.read_text())["fingerprint"] == file_fingerprint(path):
            # Copy-on-write: torch warns of read-only memory, and nothing is written.
            return torch.from_numpy(np.load(path, mmap_mode="c"))
    if reports_damage:
        print_notice(f"{path} is damaged: it is computed again")
    return None


def write_finished(path: Path, embedder: Embedder, images: Images) -> None:
    """Writes a file of embeddings, then the record that makes it count as finished."""
    write_embeddings(path, embedder, images, path.stem, occasional_lines())
    write_json(path.with_suffix(".json"), {"fingerprint": file_fingerprint(path)})


def write_embeddings(path: Path, embedder: Embedder, images: Images, key: str, report: Report) -> None:
    """Writes the embeddings of images to an .npy file, [N, D] float32, whole or not at all.

    They are streamed into a hidden file, which is continued if a process with the same key was killed.
    """
    partial, position = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.position")
    shape = (len(images), embedder.width)
    done = position_reached(partial, position, key)
    rows = np.lib.format.open_memmap(partial, "r+" if done else "w+", np.dtype(np.float32), shape)
    saved_at = time.monotonic()
    report(done, len(images))
    for batch in embedding_batches(embedder, images, done):
        rows[done : done + len(batch)] = batch
        done += len(batch)
        if time.monotonic() - saved_at >= SAVE_SECONDS:
            save_position(rows, position, key, done)
            saved_at = time.monotonic()
        report(done, len(images))
    save_position(rows, position, key, done)
    partial.replace(path)
    sync_folder(path.parent)
    position.unlink()


def position_reached(partial: Path, position: Path, key: str) -> int:
    """Returns the number of rows that a killed process with the same key has written; 0 if there was none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads(position.read_text())
        if saved["key"] == key and partial.stat().st_size == saved["bytes"]:
            return int(saved["rows"])
    return 0


def save_position(rows: Floats, position: Path, key: str, done: int) -> None:
    """Flushes the rows to the disk, then writes how many are done."""
    assert isinstance(rows, np.memmap)
    rows.flush()
    size = os.stat(rows.filename).st_size  # type: ignore[arg-type]  # noqa: PTH116
    write_json(position, {"key": key, "rows": done, "bytes": size})


def occasional_lines() -> Report:
    """Returns a function that prints a line about a computation every half minute."""
    printed_at = started_at = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal printed_at, first
        first, now = done if first is None else first, time.monotonic()
        if now - printed_at >= LINE_SECONDS and first < done < total:
            speed = (done - first) / (now - started_at)
            print_notice(f"{done:,} of {total:,} images embedded, {speed:,.0f} per second")
            printed_at = now

    return report
