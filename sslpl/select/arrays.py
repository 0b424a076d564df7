"""Converts arrays given by the caller to tensors, and checks their shapes and values."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sslpl.types import UserError

# Sizes: N unlabeled rows, L labeled rows, C classes, D dimensions, M members of a committee.
SHAPES: dict[str, tuple[str, ...]] = {
    "logits": ("N", "C"),
    "probabilities": ("N", "C"),
    "embeddings": ("N", "D"),
    "predicted_loss": ("N",),
    "labeled_logits": ("L", "C"),
    "labeled_embeddings": ("L", "D"),
    "labeled_predicted_loss": ("L",),
    "labels": ("L",),
    "previous_logits": ("N", "C"),
    "committee_logits": ("M", "N", "C"),
    "hidden_labels": ("N",),
    "head_weight": ("C", "D"),
    "head_bias": ("C",),
}
LABELED = ("labeled_logits", "labeled_embeddings", "labeled_predicted_loss", "labels")
CLASSES = ("labels", "hidden_labels")  # arrays of integers
SIZE_ARGUMENTS = {"num_unlabeled": "N", "num_classes": "C"}  # sizes that can be given without an array
TOLERANCE = 1e-3  # of the sum of the probabilities of a row


class PoolArrays(NamedTuple):
    """Checked arrays of a pool, on one device."""

    tensors: dict[str, Tensor]  # by the names of SHAPES, in float32; class labels in int64 on the CPU
    sizes: dict[str, int]  # N, L, C, D and M, as far as they are known
    device: torch.device


def pool_arrays(given: Mapping[str, Any], sizes: Mapping[str, int | None]) -> PoolArrays:
    """Converts the arrays that are not None, on the device of the first tensor (the CPU if all are of numpy).

    Arrays of the right type are not copied. UserError for values that are not finite and for sizes that disagree with
    each other or with `sizes`.
    """
    device = next((value.device for value in given.values() if isinstance(value, Tensor)), torch.device("cpu"))
    tensors = {name: as_tensor(name, value, device) for name, value in given.items() if value is not None}
    if "probabilities" in tensors:
        tensors["logits"] = log_probabilities(tensors.pop("probabilities"))
    known = {SIZE_ARGUMENTS[name]: (size, name) for name, size in sizes.items() if size is not None}
    for name, tensor in tensors.items():
        bind_sizes(name, tuple(tensor.shape), known)
        check_values(name, tensor)
    found = {letter: size for letter, (size, _) in known.items()}
    for name in CLASSES:
        if name in tensors:
            check_classes(name, tensors[name], found.get("C"))
    return PoolArrays(tensors, found, device)


def as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    """Converts an array of numpy or torch, or nested sequences: classes to int64 on the CPU, others to float32."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        value = torch.stack([*value])
    tensor = value.detach() if isinstance(value, Tensor) else numpy_tensor(name, value)
    if name not in CLASSES:
        return tensor.to(device, torch.float32)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise UserError(f"{name}: must hold whole numbers, not {str(tensor.dtype).removeprefix('torch.')}")
    return tensor.to("cpu", torch.int64)


def numpy_tensor(name: str, value: Any) -> Tensor:
    """Converts anything that numpy reads as an array to a tensor of float32 or int64; UserError if not numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of unequal lengths
        raise UserError(f"{name}: must be an array of numbers ({error})") from None
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name}: must hold numbers, not {array.dtype}")
    dtype = np.float32 if array.dtype.kind == "f" else np.int64
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
        return torch.from_numpy(np.asarray(array, dtype=dtype, order="C"))


def bind_sizes(name: str, shape: tuple[int, ...], known: dict[str, tuple[int, str]]) -> None:
    """Adds the sizes of an array to those known, each with the array it is from; UserError if they disagree."""
    letters = SHAPES[name]
    if len(shape) != len(letters):
        raise UserError(f"{name}: must have the shape {shape_text(name)}, not [{', '.join(map(str, shape))}]")
    for letter, size in zip(letters, shape, strict=True):
        expected, source = known.setdefault(letter, (size, name))
        if size != expected:
            raise UserError(
                f"{name}: must have the shape {shape_text(name)} with {letter}={expected} of {source}, "
                f"not [{', '.join(map(str, shape))}]"
            )
        if size == 0 and letter != "L":
            raise UserError(f"{name}: must not be empty, {shape_text(name)} is [{', '.join(map(str, shape))}]")


def shape_text(name: str) -> str:
    """Returns the shape of an argument as it is written in messages, such as [N, C]."""
    return f"[{', '.join(SHAPES[name])}]"


def check_values(name: str, tensor: Tensor) -> None:
    """Raises UserError if a value is NaN or infinite; needs no memory unless one is."""
    if tensor.numel() and not all(math.isfinite(extreme) for extreme in tensor.aminmax()):
        row = int((~torch.isfinite(tensor)).flatten(1 if tensor.ndim > 1 else 0).nonzero()[0, 0])
        raise UserError(f"{name}: must be finite in float32; row {row} is not")


def check_classes(name: str, labels: Tensor, num_classes: int | None) -> None:
    """Raises UserError if a label is not one of the classes 0..C-1."""
    limit = torch.iinfo(torch.int64).max if num_classes is None else num_classes
    if bool(((labels < 0) | (labels >= limit)).any()):
        allowed = "classes from 0" if num_classes is None else f"classes from 0 to {num_classes - 1}"
        raise UserError(f"{name}: must be {allowed}, not {int(labels.min())} to {int(labels.max())}")


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Converts probabilities [N, C] to logits by their logarithm; UserError if a row is no distribution."""
    bind_sizes("probabilities", tuple(probabilities.shape), {})
    check_values("probabilities", probabilities)
    if bool((probabilities < 0).any()) or bool(((probabilities.sum(dim=1) - 1).abs() > TOLERANCE).any()):
        raise UserError("probabilities: must not be negative, and each row must sum to 1")
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def head_arrays(head: Any) -> Iterator[tuple[str, Any]]:
    """Yields the weight [C, D] and the bias [C] of a linear head, given as a pair or as an nn.Linear, by name."""
    if isinstance(head, nn.Linear):
        head = (head.weight, torch.zeros(head.out_features) if head.bias is None else head.bias)
    if not isinstance(head, list | tuple) or len(head) != 2:
        raise UserError("head: must be a pair (weight [C, D], bias [C]) or an nn.Linear")
    return zip(("head_weight", "head_bias"), head, strict=True)
