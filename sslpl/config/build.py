"""From a checked config to the parts of a run."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_object, instantiate
from torch import nn

from sslpl.budget import Budget
from sslpl.config.identity import Config
from sslpl.data.augmentation import Augmentation
from sslpl.data.images import place_images
from sslpl.data.variants import PoolVariant, apply_variant
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.models.starting_weights import Start, file_weights, start_backbone, weights_fingerprint
from sslpl.query.context import needs
from sslpl.query.limits import check_pool
from sslpl.runtime import Runtime, has_bfloat16
from sslpl.seeds import build_seeded
from sslpl.setup import Setup
from sslpl.types import Dataset, Oracle, UserError

T = TypeVar("T")
Networks = tuple[nn.Module, nn.Module | None]


def build_setup(config: Config, runtime: Runtime, folder: Path = Path(), world: World = SINGLE_PROCESS) -> Setup:
    """The dataset on its device, the losses, the strategy, the budget in images, for a run with a folder."""
    device = runtime.prepare(world)
    training, ranking, ssl, query = (instantiate(config[name]) for name in ("training", "ranking", "ssl", "query"))
    oracle: Oracle = instantiate(config["oracle"])
    dataset = oracle.prepare(read_dataset(config["dataset"], config["seed"]))
    known = int((dataset.train_labels >= 0).sum()) % len(dataset.train)  # if some images are labeled and some not
    budget: Budget = instantiate(config["budget"]).in_images(len(dataset.train), len(dataset.class_names), known)
    limit = None if runtime.held_gib is None else int(runtime.held_gib * 2**30)
    dataset = dataset._replace(
        train=place_images(dataset.train, device, limit), test=place_images(dataset.test, device, limit)
    )
    augmentation = Augmentation(
        dataset.train.shape,
        dataset.mean,
        dataset.std,
        flip=dataset.flip,
        padding=dataset.padding,
        cutout=dataset.cutout,
        device=device,
    )
    build = network_builder(config, dataset, device, compiled=runtime.compile is True)
    build(0)  # what is wrong with a backbone or its weights is said before anything is written
    check_pool(query, budget, len(dataset.train), device)
    return Setup(
        dataset,
        build,
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
        capture_steps=world.size == 1
        and device.type == "cuda"
        and runtime.compile is not False
        and not runtime.deterministic,
        oracle=oracle,
        folder=folder,
        world=world,
    )


def read_dataset(node: Config, seed: int) -> Dataset:
    """What the function of a dataset returns, as the variant that the other keys ask for."""
    reader, variant = split_config(node, PoolVariant)
    dataset: Dataset = instantiate(reader)
    return apply_variant(dataset, variant, seed)


def split_config(node: Config, kind: type[T]) -> tuple[Config, T]:
    """The config of an object without the keys that stand beside its own, and these as what they are."""
    keys = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    own = {key: value for key, value in node.items() if key not in keys}
    return own, kind(**{key: value for key, value in node.items() if key in keys})


def with_fingerprints(config: Config) -> Config:
    """A config with the fingerprints of the user's files, images and weights, which count in a run's id.

    UserError if the config holds another one.
    """
    return config | {
        "dataset": with_images_fingerprint(config["dataset"]),
        "backbone": with_weights_fingerprint(config["backbone"]),
    }


def with_images_fingerprint(node: Config) -> Config:
    """The config of a dataset with the fingerprint of its files, where its function has one."""
    found = getattr(get_object(node["_target_"]), "fingerprint", None)
    if found is None:
        return node
    here = found(**{key: node[key] for key in signature(found).parameters})
    if node["fingerprint"] not in (None, here):
        raise UserError(f"dataset.fingerprint={node['fingerprint']}: the files that are there have {here}")
    return node | {"fingerprint": here}


def with_weights_fingerprint(node: Config) -> Config:
    """The config of a backbone with the fingerprint of its file of weights, if it starts from one."""
    start = split_config(node, Start)[1]
    given = start.weights_fingerprint
    if start.file is None:
        if given is not None:
            raise UserError(f"backbone.weights_fingerprint={given}: must be null unless backbone.weights is a file")
        return node
    here = weights_fingerprint(start.file)
    if given not in (None, here):
        raise UserError(f"backbone.weights_fingerprint={given}: {start.file} has {here}")
    return node | {"weights_fingerprint": here}


def backbone_builder(node: Config, shape: tuple[int, int, int], weights: bool = True) -> Callable[[int], nn.Module]:
    """What builds the backbone of a config for some number of classes and for images of a shape.

    Without `weights` it does not begin with those that the config names, because others follow. A file of weights is
    read once, here.
    """
    own, start = split_config(node, Start)
    backbone_of = partial(instantiate(own), in_channels=shape[0])
    if "image_size" in signature(backbone_of).parameters:
        backbone_of = partial(backbone_of, image_size=shape[1])
    start = start if weights else replace(start, weights=None)
    known = None if start.file is None else file_weights(start.file, start.weights_fingerprint)
    return lambda classes: start_backbone(backbone_of(num_classes=classes), start, known)


def network_builder(
    config: Config, dataset: Dataset, device: torch.device, compiled: bool
) -> Callable[[int], Networks]:
    """What builds fresh networks for a cycle, of the dataset's classes if no number is given.

    Their initial weights depend on seed, cycle and classes alone, or are those of `backbone.weights`.
    """
    module_of, seed, known = instantiate(config["module"]), config["seed"], len(dataset.class_names)
    backbone_of = backbone_builder(config["backbone"], dataset.train.shape)

    def build(cycle: int, classes: int = known) -> Networks:
        backbone: Any = build_seeded(lambda: backbone_of(classes), seed, f"backbone {cycle}")
        module = build_seeded(lambda: module_of(channels=backbone.channels), seed, f"module {cycle}")
        backbone.to(device, memory_format=torch.channels_last)
        if compiled:
            backbone.compile(dynamic=False)
        return backbone, None if module is None else module.to(device)

    return build
