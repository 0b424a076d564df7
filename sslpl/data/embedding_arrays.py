"""Reads the arrays of embeddings from an .npz file, a folder of .npy files or a .parquet file, and checks them."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslpl.fingerprints import file_fingerprint, joint_fingerprint
from sslpl.types import UserError

REQUIRED, OPTIONAL = ("train", "train_labels", "test", "test_labels"), ("class_names", "paths")
CHUNK = 2**11  # rows that are checked and summed at a time, few enough for a cache
CONSTANT = 1e-6  # a dimension with a lower standard deviation counts as constant
Array = NDArray[Any]


def embeddings_fingerprint(file: str | None) -> str:
    """Hashes the content of the file, or of the arrays of a folder, to 16 hexadecimal digits."""
    path = located(file)
    if path.is_file():
        return file_fingerprint(path)
    return joint_fingerprint({array.name: file_fingerprint(array) for array in sorted(array_files(path).values())})


def located(file: str | None) -> Path:
    """Returns the path of a file or folder of embeddings; UserError if there is none."""
    if file is None:
        raise UserError("dataset.file=null: must be an .npz file, a .parquet file or a folder of .npy files")
    path = Path(file).expanduser()
    if not path.exists():
        raise UserError(f"dataset.file={file}: no such file or folder")
    return path


def array_files(folder: Path) -> dict[str, Path]:
    """Returns the .npy files of a folder that are read, by the name of the array."""
    paths = {name: folder / f"{name}.npy" for name in (*REQUIRED, *OPTIONAL)}
    return {name: path for name, path in paths.items() if path.exists()}


def read_arrays(file: str | None) -> Mapping[str, Array]:
    """Reads the arrays of an .npz file, a folder or a parquet file; UserError if that fails."""
    path = located(file)
    try:
        if path.is_dir():
            # Copy-on-write: torch warns of read-only memory, and nothing is written.
            files = array_files(path).items()
            return {name: np.load(array, mmap_mode=mapping_mode(name)) for name, array in files}
        if path.suffix == ".parquet":
            return read_parquet(path, file)
        with np.load(path) as content:
            return {name: content[name] for name in content.files}
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"dataset.file={file}: must be .npz, .parquet or a folder of .npy files ({reason})") from error


def mapping_mode(name: str) -> Literal["c"] | None:
    """Returns numpy's memory-map mode of an array: the vectors are mapped, the rest is read."""
    return "c" if name in ("train", "test") else None


def read_parquet(path: Path, file: str | None) -> Mapping[str, Array]:
    """Reads the columns embedding, label, split and path of a parquet file; a missing label is unknown."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"dataset.file={file}: a parquet file needs pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ValueError(str(error)) from error
    missing = [name for name in ("embedding", "label", "split") if name not in table.column_names]
    if missing:
        raise UserError(
            f"dataset.file={file}: must have the columns embedding, label and split (train or test), and optionally "
            f"path; {', '.join(missing)} is missing"
        )
    column = table["embedding"].combine_chunks()
    widths = np.unique(pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False))
    if len(widths) != 1 or np.isnan(float(widths[0])):
        raise UserError(f"dataset.file={file}: embeddings must all have one length, not {listed(widths)}")
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), int(widths[0]))
    split = np.array(table["split"].to_pylist(), dtype=object)
    labels, names = label_indices(table["label"].to_pylist())
    content: dict[str, Array] = {}
    for part in ("train", "test"):
        rows = split == part
        content |= {part: np.ascontiguousarray(vectors[rows]), f"{part}_labels": labels[rows]}
    if not bool(np.isin(split, ("train", "test")).all()):
        raise UserError(f"dataset.file={file}: split must be train or test, not {listed(np.unique(split.astype(str)))}")
    if names is not None:
        content["class_names"] = np.array(names)
    if "path" in table.column_names:
        content["paths"] = np.array(table["path"].to_pylist())[split == "train"]
    return content


def label_indices(values: Sequence[Any]) -> tuple[Array, list[str] | None]:
    """Returns class indices and, if the labels are text, the sorted class names; -1 for a missing label."""
    if not any(isinstance(value, str) for value in values):
        return np.array([-1 if value is None else value for value in values]), None
    names = sorted({str(value) for value in values if value is not None})
    index = {name: number for number, name in enumerate(names)}
    return np.array([-1 if value is None else index[str(value)] for value in values]), names


def check_arrays(arrays: Mapping[str, Array], file: str | None) -> None:
    """Checks names, shapes and types of the arrays; UserError for the first mistake."""

    def fail(message: str) -> None:
        raise UserError(f"dataset.file={file}: {message}")

    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        fail(f"must hold the arrays {', '.join(REQUIRED)}; {', '.join(missing)} is missing")
    for part in ("train", "test"):
        vectors, labels = arrays[part], arrays[f"{part}_labels"]
        if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind != "f" or vectors.dtype.itemsize > 8:
            fail(f"{part} must be float16 or float32 [rows, dimensions], not {vectors.dtype} {list(vectors.shape)}")
        if labels.dtype.kind not in "iu" or labels.shape != (len(vectors),):
            shape = [len(vectors)]
            fail(f"{part}_labels must be integers {shape}, not {labels.dtype} {list(labels.shape)}")
    if arrays["train"].shape[1] != arrays["test"].shape[1]:
        widths = arrays["train"].shape[1], arrays["test"].shape[1]
        fail(f"train and test must have the same dimensions, not {widths[0]} and {widths[1]}")
    if "paths" in arrays and arrays["paths"].shape != (len(arrays["train"]),):
        fail(f"paths must name each of {len(arrays['train']):,} rows of train, not {list(arrays['paths'].shape)}")
    if "paths" in arrays and len(np.unique(arrays["paths"])) < len(arrays["paths"]):
        fail("paths must differ from one another")


def checked_chunks(vectors: Array, file: str | None, part: str) -> Iterator[Array]:
    """Yields chunks of rows in float64; UserError for the first row that is NaN or infinite."""
    for start in range(0, len(vectors), CHUNK):
        rows = vectors[start : start + CHUNK].astype(np.float64)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise UserError(f"dataset.file={file}: {part} must be finite, row {start + int(np.argmin(finite))} is not")
        yield rows


def mean_and_std(chunks: Iterator[Array]) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of each dimension, [D] float64 each; 1 for the deviation of a constant."""
    first = next(chunks)
    shift, count = first[0], 0  # the shift prevents cancellation
    total, squares = np.zeros(len(shift)), np.zeros(len(shift))
    for rows in chain([first], chunks):
        shifted, count = rows - shift, count + len(rows)
        total += shifted.sum(axis=0)
        squares += np.square(shifted).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    return torch.from_numpy(mean + shift), torch.from_numpy(np.where(std > CONSTANT, std, 1.0))


def class_names(arrays: Mapping[str, Array], labels: Sequence[Tensor], file: str | None) -> tuple[str, ...]:
    """Returns the names of the classes, by default their numbers; UserError if labels and names do not fit."""
    known = torch.cat(list(labels))
    lowest, highest = int(known.min()), int(known.max())
    if lowest < -1 or bool((labels[1] < 0).any()):
        raise UserError(f"dataset.file={file}: labels must be at least 0, or -1 for an unlabeled row of train")
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"])
        if highest >= len(names) or len(set(names)) < len(names):
            raise UserError(f"dataset.file={file}: class_names must be {highest + 1} different names, not {len(names)}")
        return names
    absent = sorted(set(range(highest + 1)) - set(torch.unique(known).tolist()))
    if absent:
        raise UserError(f"dataset.file={file}: labels must be 0 to {highest} without gaps; no row has {listed(absent)}")
    return tuple(map(str, range(highest + 1)))


def listed(values: Any) -> str:
    """Lists the first few of some values."""
    shown = [str(value) for value in list(values)[:5]]
    return ", ".join(shown) + (", ..." if len(values) > len(shown) else "")
