"""The output of the command: the arrays of dataset=embeddings as a folder of .npy files or as an .npz file."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslpl.files import sync_folder, write_whole
from sslpl.learn.embedding import Embedder, embedding_key
from sslpl.learn.embedding_files import Report, lock_while_computing, write_embeddings
from sslpl.recording.progress import Progress
from sslpl.types import Dataset, Images, UserError

PARTS = ("train", "test")
SOURCE = "source"  # a further array, which dataset=embeddings ignores: what the embeddings were computed from
OTHER_FORMATS = (".npy", ".parquet", ".pt", ".csv", ".zip")
Arrays = Mapping[str, NDArray[Any]]


def check_output(output: Path | None) -> Path:
    """Returns the path of the output; UserError if there is none, or it has another format or cannot be written."""
    if output is None:
        raise UserError("--output: must be given: an .npz file, or another name for a folder of .npy files")
    if output.suffix in OTHER_FORMATS:
        raise UserError(f"--output {output}: must end in .npz, or be the name of a folder")
    path = output.expanduser()
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise UserError(f"--output {output}: cannot be written")
    return path


def write_dataset(path: Path, embedder: Embedder, dataset: Dataset, progress: Progress) -> bool:
    """Writes the embeddings, labels and names of a dataset, whole or not at all; False if they were there already.

    The embeddings are streamed into a hidden folder, in which the same command continues after a kill.
    """
    images = {"train": dataset.train, "test": dataset.test}
    keys = {part: embedding_key(embedder, images[part]) for part in PARTS}
    arrays = small_arrays(dataset, keys | {"backbone": json.loads(embedder.architecture)})
    with lock_while_computing(path):
        if path.exists():
            check_same(path, arrays)
            return False
        folder = partial_folder(path, hashlib.sha256("".join(keys.values()).encode()).hexdigest()[:8])
        for part in PARTS:
            if not (folder / f"{part}.npy").exists():
                report = progress_report(progress, f"embedding {part}", images[part])
                write_embeddings(folder / f"{part}.npy", embedder, images[part], keys[part], report)
        for name, array in arrays.items():
            write_whole(folder / f"{name}.npy", npy_bytes(array))
        if path.suffix == ".npz":
            write_npz(path, folder)
        else:
            folder.rename(path)
            sync_folder(path.parent)
    return True


def small_arrays(dataset: Dataset, source: Mapping[str, Any]) -> Arrays:
    """Returns everything but the embeddings: labels, class names, paths if there are any, and the source as JSON."""
    paths = {"paths": np.array(dataset.paths)} if dataset.paths else {}
    return {
        "train_labels": dataset.train_labels.cpu().numpy(),
        "test_labels": dataset.test_labels.cpu().numpy(),
        "class_names": np.array(dataset.class_names),
        SOURCE: np.array(json.dumps(source, sort_keys=True)),
    } | paths


def check_same(path: Path, arrays: Arrays) -> None:
    """Raises UserError unless an existing output has these arrays, its source among them."""
    try:
        same = all(np.array_equal(stored_array(path, name), array) for name, array in arrays.items())
    except (OSError, ValueError, KeyError):
        same = False
    if not same:
        raise UserError(f"--output {path}: has other content; remove it, or choose another name")


def stored_array(path: Path, name: str) -> NDArray[Any]:
    """Reads one array of an output."""
    array: NDArray[Any]
    if path.is_dir():
        array = np.load(path / f"{name}.npy")
    else:
        with np.load(path) as content:
            array = content[name]
    return array


def partial_folder(path: Path, key: str) -> Path:
    """Returns the folder in which an output with a key is prepared, and removes those of other keys."""
    folder = path.with_name(f".{path.name}.partial-{key}")
    for other in path.parent.glob(f".{path.name}.partial-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return folder


def progress_report(progress: Progress, name: str, images: Images) -> Report:
    """Returns a function that shows how many images are embedded."""
    shown: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            progress.phase(name, total=total, done=done, images=len(images))
        else:
            progress.advance(done - shown, done - shown)
        shown = done

    return report


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Returns the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_npz(path: Path, folder: Path) -> None:
    """Writes the arrays of a folder to one .npz file, streamed from their files, and removes the folder."""
    partial = folder / path.name
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    with partial.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
    shutil.rmtree(folder)
