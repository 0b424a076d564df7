"""Checkpoints: the state to resume from, as one file with a checksum, its predecessor, and the final weights."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch

from sslpl.files import write_whole
from sslpl.types import UserError

CURRENT, PREVIOUS, WEIGHTS = "state.ckpt", "previous.ckpt", "weights.pt"


class ModelSignature(NamedTuple):
    """Inputs and outputs of a trained network: everything besides its weights that prediction needs."""

    class_names: tuple[str, ...]  # in the order of the logits
    shape: tuple[int, int, int]  # channels, height, width of an image
    resize: int  # the shorter side of an image after scaling, before the center crop
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]


class SavedModel(NamedTuple):
    """The final weights of a run, with the signature of its network."""

    backbone: dict[str, torch.Tensor]
    module: dict[str, torch.Tensor] | None
    signature: ModelSignature


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `folder` atomically; the checkpoint that was there becomes the previous one."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    current = folder / CURRENT
    if current.exists():
        current.replace(folder / PREVIOUS)
    write_whole(current, hashlib.sha256(data).digest() + data)


def load(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the newest undamaged checkpoint, and a warning if a damaged one was skipped; None for what is missing."""
    warning = None
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True), warning
        warning = f"{path} is damaged (its checksum does not match): going on from the one before"
    return None, warning


def save_model(folder: Path, state: Mapping[str, Any], signature: ModelSignature) -> None:
    """Writes the final weights of a finished run to `folder`."""
    buffer = io.BytesIO()
    weights = {"backbone": state["backbone"], "module": state["module"]}
    torch.save(weights | {"signature": signature._asdict()}, buffer)
    write_whole(folder / WEIGHTS, buffer.getvalue())


def load_model(folder: Path) -> SavedModel:
    """Returns the final weights in `folder`; UserError if they are missing, damaged or without a signature."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: not there, though the run is finished; remove the run's folder and run it again")
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes checksums but does not check them
        saved = torch.load(path, map_location="cpu", weights_only=True)
        backbone, module, signature = saved["backbone"], saved["module"], saved.get("signature")
        signature = None if signature is None else ModelSignature(**signature)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); copy it again, or run it again") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged (its checksum does not match); copy it again, or run it again")
    if signature is None:
        raise UserError(f"{path}: without class names and image size, as older versions left it; run it again")
    return SavedModel(backbone, module, signature)


def discard(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    for name in (CURRENT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
