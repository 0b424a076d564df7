"""Starting weights: a file in this project's own layout that fresh backbones begin from."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslpl.types import UserError

HEAD = "head."  # what the weights of a classifier are named after: it starts fresh where it does not fit


def fingerprint(init: str) -> str:
    """16 hexadecimal digits that tell the content of a file of starting weights; UserError without such a file."""
    return hashlib.sha256(content(init)).hexdigest()[:16]


def content(init: str) -> bytes:
    """The bytes of a file of starting weights; UserError if it cannot be read."""
    try:
        return Path(init).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"training.init={init}: cannot be read ({error.strerror or error})") from error


def starting_weights(init: str) -> dict[str, Tensor]:
    """Weights by name from a file of `python -m sslpl.pretrain`, or from a finished run's `weights.pt`: its backbone's.

    UserError for a file that holds something else.
    """
    content(init)  # the file itself being missing is told first
    try:
        saved: Any = torch.load(Path(init).expanduser(), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"training.init={init}: is no file of weights (torch.save of a state_dict)") from error
    if isinstance(saved, Mapping) and isinstance(saved.get("backbone"), Mapping):
        saved = saved["backbone"]
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UserError(f"training.init={init}: must hold the weights of a backbone by name, and nothing else")
    return dict(saved)


def start_from(backbone: nn.Module, weights: Mapping[str, Tensor], init: str) -> None:
    """Gives a backbone starting weights; a head that is not among them, or of other classes, stays as it is.

    UserError that names the first weight that does not fit.
    """
    own = backbone.state_dict()
    different = [name for name in {**own, **weights} if shape(weights, name) != shape(own, name)]
    for name in different:
        if not name.startswith(HEAD):
            there, here = shape(weights, name), shape(own, name)
            raise UserError(
                f"training.init={init}: does not fit this backbone: {name} is {there} there and {here} here; "
                "weights are those of one backbone and one number of input channels"
            )
    # A head comes whole or not at all.
    fresh = {name for name in own if different and name.startswith(HEAD)}
    backbone.load_state_dict({name: own[name] if name in fresh else weights[name] for name in own})


def shape(weights: Mapping[str, Tensor], name: str) -> str:
    """The shape of a weight as text, `missing` without one."""
    return str(list(weights[name].shape)) if name in weights else "missing"
