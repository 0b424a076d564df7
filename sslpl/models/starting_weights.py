"""Starting weights of a backbone, from a file or from ImageNet, and a frozen backbone with a trainable head."""

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

from sslpl.fingerprints import file_fingerprint
from sslpl.types import Features, UserError

Weights = dict[str, Tensor]
HEAD = "head."  # prefix of a classifier's weights, which stay as they were initialized where those of a file do not fit
IMAGENET = "imagenet"
WRAPPERS = ("module.", "network.")  # prefixes of a parallel network of torch's, and of `HeadOnly`
SILENCE_SECONDS = 10  # a server that is silent for longer counts as unreachable


@dataclass(frozen=True)
class Start:
    """The keys of `backbone` that any backbone has; the defaults leave it as it is."""

    weights: str | None = None  # imagenet, or a file with weights
    weights_fingerprint: str | None = None  # of the content of that file
    freeze: bool = False  # the head alone learns

    @property
    def file(self) -> str | None:
        """The file of the weights, if they come from one."""
        return None if self.weights == IMAGENET else self.weights


class Origin(NamedTuple):
    """The network of a library that a backbone is, or is made of."""

    translate: Callable[[str], str | None]  # its name of a weight -> the backbone's; None: of the library's own head
    fetch: Callable[[], Weights]  # its ImageNet weights, by its names


class LinearProbe(nn.Module):
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

    def train(self, mode: bool = True) -> "LinearProbe":
        """Training mode reaches the dropout before the head alone."""
        super().train(mode)
        self.network.eval().dropout.train(mode)
        return self

    def forward(self, images: Tensor) -> Features:
        """Features of normalized images [B, C, H, W]."""
        with torch.no_grad():
            _, maps, embedding = self.network(images)
        return Features(self.network.head(self.network.dropout(embedding)), maps, embedding)


def start_backbone(network: nn.Module, start: Start, weights: Weights | None = None) -> nn.Module:
    """The backbone with its first weights, and frozen if asked to; UserError if they do not fit.

    `weights` are those of the file, if it has been read already.
    """
    if start.file is not None:
        load_weights_into(network, file_weights(start.file) if weights is None else weights, start.file)
    elif start.weights is not None:
        load_weights_into(network, imagenet_weights(network), start.weights)
    if not start.freeze:
        return network
    if not (hasattr(network, "head") and hasattr(network, "dropout")):
        raise UserError("backbone.freeze=true: must be false for a backbone without `head` and `dropout`")
    return LinearProbe(network)


def imagenet_weights(network: nn.Module) -> Weights:
    """The weights that a network's library has learned on ImageNet; UserError if there are none."""
    origin: Origin | None = getattr(network, "origin", None)
    if origin is None:
        raise UserError("backbone.weights=imagenet: must be null or a file; this backbone was never trained on it")
    return download_weights(origin.fetch)


def file_weights(file: str, fingerprint: str | None = None) -> Weights:
    """Reads a state dict, plain or nested as in a run's `weights.pt`; UserError for a file that holds something else.

    With a fingerprint, UserError for a file that has changed since it was taken.
    """
    try:
        content: Any = torch.load(Path(file).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise unreadable(file, error) from error
    if fingerprint not in (None, weights_fingerprint(file)):
        raise UserError(f"backbone.weights={file}: has changed since its fingerprint was taken ({fingerprint})")
    for key in ("backbone", "state_dict", "model"):  # of a run's weights.pt, and as other trainers nest them
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights={file}: holds no state dict")
    return {str(name): value for name, value in content.items()}


def weights_fingerprint(file: str) -> str:
    """Hashes the content of a file of weights, cached if it is large; UserError if it cannot be read."""
    try:
        return file_fingerprint(Path(file).expanduser())
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: str, error: Exception) -> UserError:
    """The line about a file that holds no weights."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return UserError(f"backbone.weights={file}: must be imagenet or a file with weights ({reason})")


def download_weights(fetch: Callable[[], Weights]) -> Weights:
    """Weights from the network or from the library's cache; UserError where neither has them."""
    timeout = getdefaulttimeout()
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        setdefaulttimeout(SILENCE_SECONDS)
        try:
            return fetch()
        except Exception as error:  # each library raises its own
            line = (
                f"backbone.weights=imagenet: download failed ({one_line(error)}); give a file with a state dict instead"
            )
            raise UserError(line) from error
        finally:
            setdefaulttimeout(timeout)


def one_line(error: Exception) -> str:
    """An error in one short line."""
    return shorten(str(error) or type(error).__name__, 200)


def load_weights_into(network: nn.Module, weights: Weights, source: str) -> None:
    """Copies weights into a network; a head that is partial or for other classes stays as it is, all else must fit."""
    own = network.state_dict()
    named = {own_name(network, own, name): value for name, value in weights.items()}
    found = {name: fit_first_convolution(value, own.get(name)) for name, value in named.items() if name is not None}
    head = {name for name in own if name.startswith(HEAD)}
    if any(name not in found or found[name].shape != own[name].shape for name in head):
        found = {name: value for name, value in found.items() if name not in head}
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # not in all files
    wrong = [name for name in found if name not in own or found[name].shape != own[name].shape]
    wrong += [name for name in own if name not in found and name not in head | counters]
    if wrong:
        raise UserError(
            f"backbone.weights={source}: {explain_mismatch(wrong[0], found, own)} ({len(wrong)} weights do not fit)"
        )
    network.load_state_dict(found, strict=False)


def own_name(network: nn.Module, own: Weights, name: str) -> str | None:
    """A network's name of a weight that was saved by itself, in a wrapper, or by its library; None for its head."""
    unwrapped = [name, *(name.removeprefix(prefix) for prefix in WRAPPERS if name.startswith(prefix))]
    origin: Origin | None = getattr(network, "origin", None)
    translated = unwrapped if origin is None else [origin.translate(candidate) for candidate in unwrapped]
    return next((candidate for candidate in (*unwrapped, *translated) if candidate in own), translated[-1])


def fit_first_convolution(value: Tensor, own: Tensor | None) -> Tensor:
    """A first convolution for color images, summed over the colors where ours sees gray ones (as timm does)."""
    gray = own is not None and value.ndim == own.ndim == 4 and (value.shape[1], own.shape[1]) == (3, 1)
    return value.sum(dim=1, keepdim=True) if gray else value


def explain_mismatch(name: str, found: Weights, own: Weights) -> str:
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
