"""Builds the objects of a run from a checked config."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_object, instantiate
from torch import Tensor, nn

from sslpl.budget import Budget
from sslpl.config.frozen import build_embedder, embed_dataset, embeds_once
from sslpl.config.identity import Config, canonical
from sslpl.data.augmentation import Augmentation
from sslpl.data.embeddings import Embeddings, NoAugmentation
from sslpl.data.images import fits_in_memory, place_images
from sslpl.data.sharing import share_images
from sslpl.data.variants import PoolVariant, apply_variant
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.models.embedding_head import EmbeddingHead
from sslpl.models.starting_weights import Start, file_weights, start_backbone, weights_fingerprint
from sslpl.query.context import needs
from sslpl.query.limits import check_pool
from sslpl.runtime import Runtime, has_bfloat16
from sslpl.seeds import build_seeded
from sslpl.setup import Acceleration, EmbeddedImages, Setup, acceleration_on
from sslpl.types import UNLABELED, Dataset, Images, Oracle, UserError

SAMPLE_PIXELS = 2**20  # of the images from which a backbone's first weights are computed
T = TypeVar("T")
Networks = tuple[nn.Module, nn.Module | None]


def build_setup(config: Config, runtime: Runtime, folder: Path = Path(), world: World = SINGLE_PROCESS) -> Setup:
    """Builds the fixed parts of a run: dataset on its device, networks, losses, query strategy, budget in images."""
    device = runtime.prepare(world)
    training, ranking, ssl, query = (instantiate(config[name]) for name in ("training", "ranking", "ssl", "query"))
    oracle: Oracle = instantiate(config["oracle"])
    dataset = images = oracle.prepare(read_dataset(config["dataset"], config["seed"]))
    labeled = int((dataset.train_labels != UNLABELED).sum()) % len(dataset.train)  # 0 if all labels are known
    budget: Budget = instantiate(config["budget"]).in_images(len(dataset.train), len(dataset.class_names), labeled)
    build, embedded = network_builder(config, images, device, compiled=runtime.compile is True), None
    network, _ = build(0)  # reports errors in the backbone or its weights before anything is written
    bfloat16 = uses_bfloat16(training.precision, device, network)
    check_pool(query, budget, len(dataset.train), device)
    if embeds_once(config):
        embedder = build_embedder(config["backbone"], network, images, device, bfloat16)
        dataset = embed_dataset(embedder, images, runtime, world)
        build = network_builder(config, images, device, runtime.compile is True, embedder.width)
        embedded = EmbeddedImages(images, embedder.network.cpu())
    shared_by = canonical(config["dataset"]) if embedded is None else None
    dataset = place_dataset(dataset, device, runtime.held_gib, shared_by)
    return Setup(
        dataset,
        build,
        build_augmentation(dataset, device),
        ranking,
        ssl,
        query,
        budget,
        training,
        config["seed"],
        device,
        bfloat16,
        needs=needs(query),
        task_ssl=instantiate(config["task_ssl"]),
        capture_steps=world.size == 1
        and device.type == "cuda"
        and runtime.compile is not False
        and not runtime.deterministic,
        acceleration=acceleration_on(device) if runtime.compile == "auto" else Acceleration(),
        oracle=oracle,
        folder=folder,
        world=world,
        embedded=embedded,
    )


def uses_bfloat16(precision: str, device: torch.device, network: nn.Module) -> bool:
    """Returns whether networks compute in bfloat16; `auto` does where that is faster and reproducible.

    On a CPU the weight gradients of grouped convolutions are not reproducible in bfloat16 (oneDNN, on maps of a pixel).
    """
    grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in network.modules())
    if precision == "auto":
        return has_bfloat16(device) and not (device.type == "cpu" and grouped)
    return precision == "bfloat16"


def place_dataset(
    dataset: Dataset, device: torch.device, held_gib: float | None, shared_by: str | None = None
) -> Dataset:
    """Returns the dataset with its images in memory, or streamed where a set takes more than `held_gib` GiB.

    None sets no limit of its own: `place_images` has one for each kind of device. Runs of one process that give the
    same key `shared_by` share the images.
    """
    limit = None if held_gib is None else int(held_gib * 2**30)

    def placed(images: Images, split: str) -> Images:
        if shared_by is None:
            return place(images, device, limit)
        return share_images((shared_by, split, limit), device, lambda: place(images, device, limit))

    return dataset._replace(train=placed(dataset.train, "train"), test=placed(dataset.test, "test"))


def place(images: Images, device: torch.device, limit: int | None) -> Images:
    """Returns a set of images or embeddings on the device, or streamed to it if it takes more than the limit."""
    if not isinstance(images, Embeddings):
        return place_images(images, device, limit)
    placed = images.to(device)
    return placed.held_on_device() if device.type == "cuda" and fits_in_memory(images, device, limit) else placed


def build_augmentation(dataset: Dataset, device: torch.device) -> Augmentation:
    """Builds the augmentation that a dataset describes; embeddings have none."""
    if isinstance(dataset.train, Embeddings):
        return NoAugmentation()
    return Augmentation(
        dataset.train.shape,
        dataset.mean,
        dataset.std,
        flip=dataset.flip,
        padding=dataset.padding,
        cutout=dataset.cutout,
        device=device,
    )


def read_dataset(node: Config, seed: int) -> Dataset:
    """Reads a dataset and applies the variant (imbalance, open set, label noise) of its config."""
    reader, variant = split_config(node, PoolVariant)
    dataset: Dataset = instantiate(reader)
    return apply_variant(dataset, variant, seed)


def split_config(node: Config, kind: type[T]) -> tuple[Config, T]:
    """Splits a config into an object's own keys and a `kind` (a dataclass) built from the rest."""
    keys = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    own = {key: value for key, value in node.items() if key not in keys}
    return own, kind(**{key: value for key, value in node.items() if key in keys})


def with_fingerprints(config: Config) -> Config:
    """Returns a config with the fingerprints of the user's images and weights, which are part of a run's id.

    Raises a UserError if the config contains another fingerprint.
    """
    return config | {
        "dataset": with_images_fingerprint(config["dataset"]),
        "backbone": with_weights_fingerprint(config["backbone"]),
    }


def with_images_fingerprint(node: Config) -> Config:
    """Returns the config of a dataset with the fingerprint of its files, if its function defines one."""
    compute = getattr(get_object(node["_target_"]), "fingerprint", None)
    if compute is None:
        return node
    actual = compute(**{key: node[key] for key in signature(compute).parameters})
    if node["fingerprint"] not in (None, actual):
        raise UserError(f"dataset.fingerprint={node['fingerprint']}: the files have the fingerprint {actual}")
    return node | {"fingerprint": actual}


def with_weights_fingerprint(node: Config) -> Config:
    """Returns the config of a backbone with the fingerprint of its file of weights, if it starts from one."""
    start = split_config(node, Start)[1]
    expected = start.weights_fingerprint
    if start.file is None:
        if expected is not None:
            raise UserError(f"backbone.weights_fingerprint={expected}: must be null unless backbone.weights is a file")
        return node
    actual = weights_fingerprint(start.file)
    if expected not in (None, actual):
        raise UserError(f"backbone.weights_fingerprint={expected}: {start.file} has the fingerprint {actual}")
    return node | {"weights_fingerprint": actual}


def backbone_builder(
    node: Config, shape: tuple[int, int, int], weights: bool = True, pool: Dataset | None = None
) -> Callable[[int], nn.Module]:
    """Returns a function that builds a config's backbone for a number of classes and images [C, H, W] of a shape.

    With `weights=False` the starting weights of the config are ignored, because the caller loads others. A file of
    weights is read a single time, when this function is called. A new backbone that starts from a sample of images
    gets one of the pool.
    """
    own_keys, start = split_config(node, Start)
    new_backbone = partial(instantiate(own_keys), in_channels=shape[0])
    if "image_size" in signature(new_backbone).parameters:
        new_backbone = partial(new_backbone, image_size=shape[1])
    if "sample" in signature(new_backbone).parameters and pool is not None:
        new_backbone = partial(new_backbone, sample=pool_sample(pool))
    start = start if weights else replace(start, weights=None)
    loaded = None if start.file is None else file_weights(start.file, start.weights_fingerprint)
    return lambda classes: start_backbone(new_backbone(num_classes=classes), start, loaded)


def pool_sample(dataset: Dataset) -> Tensor:
    """Returns normalized images [N, C, H, W] that are evenly spread over the pool, with about a million pixels."""
    images = dataset.train
    count = max(1, min(len(images), SAMPLE_PIXELS // (images.shape[1] * images.shape[2])))
    index = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()
    normalize = build_augmentation(dataset, torch.device("cpu")).normalize
    return normalize(next(iter(images.to(torch.device("cpu")).batches([index]))))


def network_builder(
    config: Config, dataset: Dataset, device: torch.device, compiled: bool, embedding_width: int | None = None
) -> Callable[[int], Networks]:
    """Returns a function that builds fresh networks for a cycle, by default for the classes of a dataset of images.

    Their initial weights depend only on seed, cycle, member of an ensemble and number of classes, or are those of
    `backbone.weights`. With an `embedding_width` the backbone is the head of the frozen network, and starts from the
    weights of that head.
    """
    new_module, seed, num_classes = instantiate(config["module"]), config["seed"], len(dataset.class_names)
    new_backbone = backbone_builder(config["backbone"], dataset.train.shape, pool=dataset)

    def build(cycle: int, classes: int = num_classes, member: int = 0) -> Networks:
        name = f"backbone {cycle}" + (f" member {member}" if member else "")
        backbone: Any = build_seeded(lambda: new_backbone(classes), seed, name)
        if embedding_width is not None:
            backbone = EmbeddingHead(backbone, embedding_width)
        module = build_seeded(lambda: new_module(channels=backbone.channels), seed, f"module {cycle}")
        backbone.to(device, memory_format=torch.channels_last)
        if compiled:
            backbone.compile(dynamic=False)
        return backbone, None if module is None else module.to(device)

    return build
