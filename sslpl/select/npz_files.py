"""Reads the arrays of unlabeled and labeled rows from .npz files, as arguments of `select`."""

from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, is_zipfile

import numpy as np

from sslpl.select.arrays import LABELED, SHAPES
from sslpl.types import UserError

Arrays = dict[str, Any]
POOL_NAMES = (*(name for name in SHAPES if name not in LABELED), "paths")
LABELED_NAMES = tuple(name.removeprefix("labeled_") for name in LABELED)
SINGULAR = {"embedding": "embeddings"}  # as python -m sslpl.predict names it


def read_pool(path: Path) -> Arrays:
    """Reads the arrays of unlabeled rows: those that `select` knows, the head as a pair, and their `paths`.

    Predicted losses that are all NaN, and probabilities beside logits, are left out: `python -m sslpl.predict` writes
    both. UserError if the file cannot be read or has not one path per row.
    """
    arrays = read_npz(path, POOL_NAMES)
    if "logits" in arrays:
        arrays.pop("probabilities", None)
    if "predicted_loss" in arrays and np.isnan(arrays["predicted_loss"]).all():
        del arrays["predicted_loss"]
    if {"head_weight", "head_bias"} <= set(arrays):
        arrays["head"] = (arrays.pop("head_weight"), arrays.pop("head_bias"))
    rows = {len(array) for name, array in arrays.items() if SHAPES.get(name, ("",))[0] == "N"}
    if "paths" in arrays and rows - {len(arrays["paths"])}:
        raise UserError(f"{path}: paths must have one entry per row, not {len(arrays['paths'])}")
    return arrays


def read_labeled(path: Path) -> Arrays:
    """Reads the arrays of labeled rows; UserError if the file cannot be read."""
    return {LABELED[LABELED_NAMES.index(name)]: array for name, array in read_npz(path, LABELED_NAMES).items()}


def read_npz(path: Path, names: tuple[str, ...]) -> Arrays:
    """Reads the arrays of these names from an .npz file; UserError if it has none of them or cannot be read."""
    try:
        with path.open("rb") as file:
            found = stored_arrays(file, names) if is_zipfile(file) else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (BadZipFile, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if found is None:
        raise UserError(f"{path}: must be an .npz file, as numpy.savez writes it")
    if not found:
        raise UserError(f"{path}: has none of the arrays {', '.join(names)}")
    return found


def stored_arrays(file: BinaryIO, names: tuple[str, ...]) -> Arrays:
    """Returns the arrays of these names that an .npz file contains; BadZipFile or ValueError if one is damaged."""
    stored = np.load(file)
    keys = {SINGULAR.get(key, key): key for key in stored.files}
    return {name: stored[keys[name]] for name in names if name in keys}
