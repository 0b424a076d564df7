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
HEAD = "head."  # prefix of the classifier's weights, which keep their initialization if a file's do not fit
IMAGENET = "imagenet"
WRAPPERS = ("module.", "network.")  # prefixes of torch's data-parallel wrappers, and of `LinearProbe`
SILENCE_SECONDS = 10  # the timeout after which a silent server counts as unreachable


@dataclass(frozen=True)
class Start:
    """The keys of `backbone` that apply to any backbone; the defaults change nothing."""

    weights: str | None = None  # imagenet or a file with weights
    weights_fingerprint: str | None = None  # of the content of that file
    freeze: bool = False  # trains only the head

    @property
    def file(self) -> str | None:
        """The file of the weights; None for ImageNet weights or none."""
        return None if self.weights == IMAGENET else self.weights


class Origin(NamedTuple):
    """The library network that a backbone equals or wraps."""

    translate: Callable[[str], str | None]  # library weight name -> the backbone's; None: the library's head
    fetch: Callable[[], Weights]  # ImageNet weights under the library's names


class LinearProbe(nn.Module):
    """A backbone of which only `head` is trained: the rest stays in eval mode, without gradients."""

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
        """Sets training mode, which affects only the dropout before the head."""
        super().train(mode)
        self.network.eval().dropout.train(mode)
        return self

    def forward(self, images: Tensor) -> Features:
        """Computes the features of normalized images [B, C, H, W]."""
        with torch.no_grad():
            _, maps, embedding = self.network(images)
        return Features(self.network.head(self.network.dropout(embedding)), maps, embedding)


def start_backbone(network: nn.Module, start: Start, weights: Weights | None = None) -> nn.Module:
    """Loads the starting weights of a backbone and freezes it if configured; UserError if they do not fit.

    `weights` are those of the file; None reads it.
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
    """Returns the ImageNet weights of a network from its library; UserError if there are none."""
    origin: Origin | None = getattr(network, "origin", None)
    if origin is None:
        raise UserError("backbone.weights=imagenet: must be null or a file; this backbone has no ImageNet weights")
    return download_weights(origin.fetch)


def file_weights(file: str, fingerprint: str | None = None) -> Weights:
    """Reads a state dict, plain or nested as in a run's `weights.pt`; UserError for a file that holds something else.

    With a fingerprint, UserError for a file that has changed since it was taken.
    """
    try:
        content: Any = torch.load(Path(file).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise unreadable_weights_error(file, error) from error
    if fingerprint not in (None, weights_fingerprint(file)):
        raise UserError(f"backbone.weights={file}: has changed since its fingerprint was taken ({fingerprint})")
    for key in ("backbone", "state_dict", "model"):  # as in a run's weights.pt, and as nested by other trainers
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights={file}: must contain a state dict")
    return {str(name): value for name, value in content.items()}


def weights_fingerprint(file: str) -> str:
    """Hashes the content of a file of weights, cached if it is large; UserError if it cannot be read."""
    try:
        return file_fingerprint(Path(file).expanduser())
    except OSError as error:
        raise unreadable_weights_error(file, error) from error


def unreadable_weights_error(file: str, error: Exception) -> UserError:
    """Returns the error for a file that contains no weights."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return UserError(f"backbone.weights={file}: must be imagenet or a file with weights ({reason})")


def download_weights(fetch: Callable[[], Weights]) -> Weights:
    """Fetches weights from the internet or from the library's cache; UserError if neither has them."""
    timeout = getdefaulttimeout()
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        setdefaulttimeout(SILENCE_SECONDS)
        try:
            return fetch()
        except Exception as error:  # libraries raise different errors
            message = (
                f"backbone.weights=imagenet: download failed ({one_line(error)}); give a file with a state dict instead"
            )
            raise UserError(message) from error
        finally:
            setdefaulttimeout(timeout)


def one_line(error: Exception) -> str:
    """Shortens an error to one line."""
    return shorten(str(error) or type(error).__name__, 200)


def load_weights_into(network: nn.Module, weights: Weights, source: str) -> None:
    """Copies weights into a network; all must fit, but a head that is partial or for other classes is skipped."""
    target = network.state_dict()
    named = {translate_weight_name(network, target, name): value for name, value in weights.items()}
    loaded = {name: fit_first_convolution(value, target.get(name)) for name, value in named.items() if name is not None}
    head = {name for name in target if name.startswith(HEAD)}
    if any(name not in loaded or loaded[name].shape != target[name].shape for name in head):
        loaded = {name: value for name, value in loaded.items() if name not in head}
    counters = {name for name in target if name.endswith("num_batches_tracked")}  # missing in some files
    wrong = [name for name in loaded if name not in target or loaded[name].shape != target[name].shape]
    wrong += [name for name in target if name not in loaded and name not in head | counters]
    if wrong:
        raise UserError(
            f"backbone.weights={source}: {explain_mismatch(wrong[0], loaded, target)} ({len(wrong)} weights do not fit)"
        )
    network.load_state_dict(loaded, strict=False)


def translate_weight_name(network: nn.Module, target: Weights, name: str) -> str | None:
    """Translates a weight name of the network, a wrapper or its library to the network's; None for a library's head."""
    unwrapped = [name, *(name.removeprefix(prefix) for prefix in WRAPPERS if name.startswith(prefix))]
    origin: Origin | None = getattr(network, "origin", None)
    translated = unwrapped if origin is None else [origin.translate(candidate) for candidate in unwrapped]
    return next((candidate for candidate in (*unwrapped, *translated) if candidate in target), translated[-1])


def fit_first_convolution(value: Tensor, target: Tensor | None) -> Tensor:
    """Sums a first convolution for color images over the colors if the network has gray images (as timm does)."""
    gray = target is not None and value.ndim == target.ndim == 4 and (value.shape[1], target.shape[1]) == (3, 1)
    return value.sum(dim=1, keepdim=True) if gray else value


def explain_mismatch(name: str, loaded: Weights, target: Weights) -> str:
    """Explains why a weight does not fit."""
    if name not in target:
        return f"this backbone has no {name}"
    if name not in loaded:
        return f"{name} is missing"
    hint = "; its stem is backbone.stem=imagenet's" if name.startswith("stem.") else ""
    return f"{name} has shape {list(loaded[name].shape)}, not {list(target[name].shape)}{hint}"


def torchvision_origin(name: str, translate: Callable[[str], str | None]) -> Origin:
    """Returns the origin of a torchvision network by name, with its latest ImageNet weights."""
    return Origin(translate, partial(torchvision_weights, name))


def torchvision_weights(name: str) -> Weights:
    """Returns the latest ImageNet weights of a torchvision network by name."""
    from torchvision.models import get_model_weights  # imported here because it takes a second

    weights: Weights = get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    return weights
