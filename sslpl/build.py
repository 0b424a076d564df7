"""From a checked config to the parts of a run."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from sslpl.data.augment import Augmentation
from sslpl.data.images import placed
from sslpl.data.variants import Variant, varied
from sslpl.identity import Config
from sslpl.models.starting import start_from, starting_weights
from sslpl.pool import Budget
from sslpl.query.context import needs
from sslpl.runtime import Runtime, has_bfloat16
from sslpl.seeds import seeded
from sslpl.setup import Setup
from sslpl.types import Dataset

Networks = tuple[nn.Module, nn.Module | None]


def build_setup(config: Config, runtime: Runtime) -> Setup:
    """The dataset on its device, the losses, the strategy, the budget in images."""
    device = runtime.prepare()
    training, ranking, ssl, query = (instantiate(config[name]) for name in ("training", "ranking", "ssl", "query"))
    dataset = read_dataset(config["dataset"], config["seed"])
    budget: Budget = instantiate(config["budget"]).of(len(dataset.train), len(dataset.class_names))
    dataset = dataset._replace(train=placed(dataset.train, device), test=placed(dataset.test, device))
    augmentation = Augmentation(
        dataset.train.shape,
        dataset.mean,
        dataset.std,
        flip=dataset.flip,
        padding=dataset.padding,
        cutout=dataset.cutout,
        device=device,
    )
    return Setup(
        dataset,
        network_builder(config, dataset, device, compiled=runtime.compile is True),
        augmentation,
        ranking,
        ssl,
        query,
        budget,
        training,
        config["seed"],
        device,
        training.precision == "bfloat16" or (training.precision == "auto" and has_bfloat16(device)),
        needs=needs(query),
        captures=device.type == "cuda" and runtime.compile is not False and not runtime.deterministic,
    )


def read_dataset(node: Config, seed: int) -> Dataset:
    """What the function of a dataset returns, as the variant that the other keys ask for."""
    keys = {field.name for field in fields(Variant)}
    dataset: Dataset = instantiate({key: value for key, value in node.items() if key not in keys})
    return varied(dataset, Variant(**{key: value for key, value in node.items() if key in keys}), seed)


def network_builder(
    config: Config, dataset: Dataset, device: torch.device, compiled: bool
) -> Callable[[int], Networks]:
    """What builds fresh networks for a cycle: their initial weights depend on seed and cycle alone."""
    backbone_of, module_of, seed = instantiate(config["backbone"]), instantiate(config["module"]), config["seed"]
    classes, channels = len(dataset.class_names), dataset.train.shape[0]
    init: str | None = config["training"].get("init")
    weights = None if init is None else starting_weights(init)

    def build_backbone(cycle: int) -> Any:
        backbone = seeded(lambda: backbone_of(num_classes=classes, in_channels=channels), seed, f"backbone {cycle}")
        if init is not None and weights is not None:
            start_from(backbone, weights, init)
        return backbone

    def build(cycle: int) -> Networks:
        backbone = build_backbone(cycle)
        module = seeded(lambda: module_of(channels=backbone.channels), seed, f"module {cycle}")
        backbone.to(device, memory_format=torch.channels_last)
        if compiled:
            backbone.compile(dynamic=False)
        return backbone, None if module is None else module.to(device)

    if weights is not None:
        build_backbone(0)  # a file that does not fit is told before anything is written
    return build
