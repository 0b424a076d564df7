"""Wraps networks of timm and torchvision, by name, as backbones."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sslpl.models.starting_weights import Origin, Weights, torchvision_origin
from sslpl.types import Features, ShareBelowOne, UserError

STAGES = 4  # the maximum number of stages that the loss prediction module reads


class WrappedBackbone(nn.Module):
    """A trunk that returns stage outputs and embedding, with a linear head of its own."""

    def __init__(
        self, trunk: nn.Module, shape: tuple[int, int, int], num_classes: int, dropout: float, origin: Origin
    ) -> None:
        super().__init__()
        with torch.inference_mode():  # a forward pass reveals the output shapes
            maps, embedding = trunk.eval()(torch.zeros(1, *shape))
        self.channels = tuple(stage.shape[1] for stage in maps)
        self.trunk, self.origin = trunk, origin
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embedding.shape[1], num_classes)

    def forward(self, images: Tensor) -> Features:
        """Computes the features of normalized images [B, C, H, W]; the embedding is in float32."""
        maps, embedding = self.trunk(images)
        embedding = embedding.float()
        return Features(self.head(self.dropout(embedding)), tuple(maps), embedding)


class TimmTrunk(nn.Module):
    """A timm network that returns its stages (a transformer's evenly spaced blocks) and its head's input."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        reductions = [stage["reduction"] for stage in network.feature_info]
        count = min(STAGES, len(reductions))
        self.stages = list(range(len(reductions)))[-count:]
        if len(set(reductions)) == 1:
            self.stages = [len(reductions) * k // count - 1 for k in range(1, count + 1)]

    def forward(self, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        last, maps = self.network.forward_intermediates(images, indices=self.stages, output_fmt="NCHW")
        return maps, self.network.forward_head(last, pre_logits=True)


class TorchvisionTrunk(nn.Module):
    """A torchvision CNN that returns the last output of each of its smallest sizes, and the mean of the last."""

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        nodes = {name: str(stage) for stage, name in enumerate(last_of_each_size(network, shape)[-STAGES:])}
        self.network = create_feature_extractor(network, nodes)

    def forward(self, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        maps = list(self.network(images).values())
        return maps, maps[-1].float().mean(dim=(2, 3))


def last_of_each_size(network: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Returns the last module, in order of execution and at most two levels deep, for each size of feature maps."""
    sizes: dict[tuple[int, ...], str] = {}

    def record(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and not isinstance(module, nn.AdaptiveAvgPool2d):
            sizes.pop(tuple(output.shape[2:]), None)
            sizes[tuple(output.shape[2:])] = name

    modules = [(name, module) for name, module in network.named_modules() if name and name.count(".") < 2]
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in modules]
    with torch.inference_mode():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return list(sizes.values())


def timm(
    *, num_classes: int, in_channels: int, image_size: int = 32, name: str = "resnet18", dropout: ShareBelowOne = 0.0
) -> WrappedBackbone:
    """Builds any timm network that returns its intermediate outputs (requires `pip install timm`)."""
    try:
        library = import_module("timm")
    except ImportError as error:
        raise UserError("backbone=timm: timm is not installed; pip install timm") from error
    if not library.is_model(name):
        raise UserError(f"backbone.name={name}: timm has no such network; see timm.list_models()")
    arguments: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0}
    known = library.get_pretrained_cfg(name)
    if known.fixed_input_size:
        arguments["img_size"] = image_size

    def fetch() -> Weights:
        weights: Weights = library.create_model(name, pretrained=True, **arguments).state_dict()
        return weights

    origin = Origin(partial(trunk_name, heads=(known.classifier or "head",)), fetch)
    shape = (in_channels, image_size, image_size)
    return wrap_network(
        lambda: TimmTrunk(library.create_model(name, **arguments)), name, shape, num_classes, dropout, origin
    )


def torchvision(
    *, num_classes: int, in_channels: int, image_size: int = 32, name: str = "resnet18", dropout: ShareBelowOne = 0.0
) -> WrappedBackbone:
    """Builds a convolutional network of torchvision."""
    models = import_module("torchvision.models")  # imported here because it takes a second
    if name not in (known := models.list_models(module=models)) or name.startswith(("vit", "swin", "maxvit")):
        names = [other for other in known if not other.startswith(("vit", "swin", "maxvit"))]
        raise UserError(f"backbone.name={name}: must be one of {', '.join(names)}; backbone=timm has transformers")
    shape = (in_channels, image_size, image_size)

    def build() -> nn.Module:
        network = models.get_model(name, weights=None)
        if in_channels != 3:
            adapt_first_convolution(network, in_channels)
        return TorchvisionTrunk(network, shape)

    heads = ("fc", "classifier", "AuxLogits", "aux1", "aux2")
    origin = torchvision_origin(name, partial(trunk_name, heads=heads))
    return wrap_network(build, name, shape, num_classes, dropout, origin)


def trunk_name(name: str, heads: tuple[str, ...]) -> str | None:
    """Translates a library's weight name to that of the wrapped network; None for weights of the library's head."""
    in_head = any(name.startswith(f"{head}.") for head in heads)
    return None if in_head else f"trunk.network.{name}"


def adapt_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Replaces the first convolution of a network by one for this number of image channels."""
    name, first = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    parent, _, child = name.rpartition(".")
    arguments: dict[str, Any] = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
    convolution = nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **arguments)
    setattr(network.get_submodule(parent), child, convolution)


def wrap_network(
    build: Callable[[], nn.Module],
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    dropout: float,
    origin: Origin,
) -> WrappedBackbone:
    """Wraps a library's network as a backbone; UserError if it cannot process images of this shape."""
    try:
        return WrappedBackbone(build(), shape, num_classes, dropout, origin)
    except Exception as error:  # networks raise different errors for unsuitable shapes
        side = f"{shape[1]}x{shape[2]} pixels"
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"backbone.name={name}: cannot be used for images of {side} ({line})") from error
