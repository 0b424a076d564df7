"""From a checked config to the parts of a run."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from sslpl.data.augment import Augmentation
from sslpl.data.images import placed
from sslpl.data.variants import Variant, varied
from sslpl.identity import Config
from sslpl.pool import Budget
from sslpl.query.context import needs
from sslpl.runtime import Runtime, has_bfloat16
from sslpl.seeds import seeded
from sslpl.setup import Setup
from sslpl.types import Dataset, Oracle

Networks = tuple[nn.Module, nn.Module | None]


def build_setup(config: Config, runtime: Runtime, folder: Path = Path()) -> Setup:
    """The dataset on its device, the losses, the strategy, the budget in images, for a run with a folder."""
    device = runtime.prepare()
    training, ranking, ssl, query = (instantiate(config[name]) for name in ("training", "ranking", "ssl", "query"))
    oracle: Oracle = instantiate(config["oracle"])
    dataset = oracle.admitted(read_dataset(config["dataset"], config["seed"]))
    known = int((dataset.train_labels >= 0).sum()) % len(dataset.train)  # if some images are labeled and some not
    budget: Budget = instantiate(config["budget"]).of(len(dataset.train), len(dataset.class_names), known)
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
        task_ssl=instantiate(config["task_ssl"]),
        captures=device.type == "cuda" and runtime.compile is not False and not runtime.deterministic,
        oracle=oracle,
        folder=folder,
    )


def read_dataset(node: Config, seed: int) -> Dataset:
    """What the function of a dataset returns, as the variant that the other keys ask for."""
    keys = {field.name for field in fields(Variant)}
    dataset: Dataset = instantiate({key: value for key, value in node.items() if key not in keys})
    return varied(dataset, Variant(**{key: value for key, value in node.items() if key in keys}), seed)


def network_builder(
    config: Config, dataset: Dataset, device: torch.device, compiled: bool
) -> Callable[[int], Networks]:
    """What builds fresh networks for a cycle, of the dataset's classes if no number is given.

    Their initial weights depend on seed, cycle and classes alone.
    """
    backbone_of, module_of, seed = instantiate(config["backbone"]), instantiate(config["module"]), config["seed"]
    known, channels = len(dataset.class_names), dataset.train.shape[0]

    def build(cycle: int, classes: int = known) -> Networks:
        backbone = seeded(lambda: backbone_of(num_classes=classes, in_channels=channels), seed, f"backbone {cycle}")
        module = seeded(lambda: module_of(channels=backbone.channels), seed, f"module {cycle}")
        backbone.to(device, memory_format=torch.channels_last)
        if compiled:
            backbone.compile(dynamic=False)
        return backbone, None if module is None else module.to(device)

    return build
