"""What a backbone begins with: weights from a file or from ImageNet; and one of which the head alone learns."""

import io
import pickle
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import getdefaulttimeout, setdefaulttimeout
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.types import Features, UserError

Weights = dict[str, Tensor]
SILENCE_SECONDS = 10  # a server that is silent for longer counts as unreachable


@dataclass(frozen=True)
class Start:
    """The keys of `backbone` that any backbone has; the defaults leave it as it is."""

    weights: str | None = None  # imagenet, or a file with a state dict
    freeze: bool = False  # the head alone learns


class Origin(NamedTuple):
    """The network of a library that a backbone is, or is made of."""

    translate: Callable[[str], str | None]  # its name of a weight -> the backbone's; None: of the library's own head
    fetch: Callable[[], Weights]  # its ImageNet weights, by its names


class HeadOnly(nn.Module):
    """A backbone whose `head` alone learns: the rest stays in eval mode, without dropout and without gradients."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.channels = network.requires_grad_(False), network.channels
        network.head.requires_grad_(True)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        head: nn.Module = self.network.head
        return head

    def train(self, mode: bool = True) -> "HeadOnly":
        """Training mode reaches the dropout before the head alone."""
        super().train(mode)
        self.network.eval().dropout.train(mode)
        return self

    def forward(self, images: Tensor) -> Features:
        """Features of normalized images [B, C, H, W]."""
        with torch.no_grad():
            _, maps, embedding = self.network(images)
        return Features(self.network.head(self.network.dropout(embedding)), maps, embedding)


def started(network: nn.Module, start: Start) -> nn.Module:
    """The backbone with its first weights, and frozen if asked to; UserError if they do not fit."""
    if start.weights is not None:
        load(network, read(network, start.weights), start.weights)
    if not start.freeze:
        return network
    if not (hasattr(network, "head") and hasattr(network, "dropout")):
        raise UserError("backbone.freeze=true: must be false for a backbone without `head` and `dropout`")
    return HeadOnly(network)


def read(network: nn.Module, source: str) -> Weights:
    """The weights of a file, or those that a network's library has learned on ImageNet."""
    if source == "imagenet":
        origin: Origin | None = getattr(network, "origin", None)
        if origin is None:
            raise UserError("backbone.weights=imagenet: must be null or a file; this backbone was never trained on it")
        return downloaded(origin.fetch)
    try:
        content = torch.load(Path(source).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"backbone.weights={source}: must be imagenet or a file with a state dict ({one(error)})"
        ) from error
    for key in ("backbone", "state_dict", "model"):  # of a run's weights.pt, and as other trainers nest them
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights={source}: holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def downloaded(fetch: Callable[[], Weights]) -> Weights:
    """Weights from the network or from the library's cache; UserError where neither has them."""
    timeout = getdefaulttimeout()
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        setdefaulttimeout(SILENCE_SECONDS)
        try:
            return fetch()
        except Exception as error:  # each library raises its own
            line = f"backbone.weights=imagenet: download failed ({one(error)}); give a file with a state dict instead"
            raise UserError(line) from error
        finally:
            setdefaulttimeout(timeout)


def one(error: Exception) -> str:
    """An error in one short line."""
    return shorten(str(error) or type(error).__name__, 200)


def load(network: nn.Module, weights: Weights, source: str) -> None:
    """Copies weights into a network; a head for other classes stays as it is, all else must fit."""
    own, origin = network.state_dict(), getattr(network, "origin", None)
    translate = origin.translate if origin is not None else str
    named = {name if name in own else translate(name): value for name, value in weights.items()}
    found = {name: fitting(value, own.get(name)) for name, value in named.items() if name is not None}
    head = {name for name in own if name.startswith("head.")}
    if any(name in found and found[name].shape != own[name].shape for name in head):
        found = {name: value for name, value in found.items() if name not in head}
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # not in all files
    wrong = [name for name in found if name not in own or found[name].shape != own[name].shape]
    wrong += [name for name in own if name not in found and name not in head | counters]
    if wrong:
        raise UserError(
            f"backbone.weights={source}: {explained(wrong[0], found, own)} ({len(wrong)} weights do not fit)"
        )
    network.load_state_dict(found, strict=False)


def fitting(value: Tensor, own: Tensor | None) -> Tensor:
    """A first convolution for color images, summed over the colors where ours sees gray ones (as timm does)."""
    gray = own is not None and value.ndim == own.ndim == 4 and (value.shape[1], own.shape[1]) == (3, 1)
    return value.sum(dim=1, keepdim=True) if gray else value


def explained(name: str, found: Weights, own: Weights) -> str:
    """Why a weight does not fit."""
    if name not in own:
        return f"this backbone has no {name}"
    if name not in found:
        return f"{name} is missing"
    hint = "; its stem is backbone.stem=imagenet's" if name.startswith("stem.") else ""
    return f"{name} has shape {list(found[name].shape)}, not {list(own[name].shape)}{hint}"


def torchvision_origin(name: str, translate: Callable[[str], str | None]) -> Origin:
    """The network of a name of torchvision's, with its latest ImageNet weights."""
    return Origin(translate, partial(torchvision_weights, name))


def torchvision_weights(name: str) -> Weights:
    """The latest ImageNet weights of torchvision's network of a name."""
    from torchvision.models import get_model_weights  # here: it takes a second to import

    weights: Weights = get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    return weights
