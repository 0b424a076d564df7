"""Checkpoints: what resuming needs, in one file with its checksum, and the one before it."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslpl.files import write_whole

NAME, PREVIOUS, WEIGHTS = "state.ckpt", "previous.ckpt", "weights.pt"


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` whole into `folder`; what was there becomes the previous checkpoint."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    current = folder / NAME
    if current.exists():
        current.replace(folder / PREVIOUS)
    write_whole(current, hashlib.sha256(data).digest() + data)


def load(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest undamaged checkpoint and, if one had to be passed over, a line that says so."""
    warning = None
    for name in (NAME, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True), warning
        warning = f"{path} is damaged (its checksum does not match): going on from the one before"
    return None, warning


def keep_weights(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the final weights into `folder`: all that a finished run needs."""
    buffer = io.BytesIO()
    torch.save({"backbone": state["backbone"], "module": state["module"]}, buffer)
    write_whole(folder / WEIGHTS, buffer.getvalue())


def discard(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
