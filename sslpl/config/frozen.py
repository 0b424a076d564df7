"""Runs on a frozen backbone without augmentation: each image is embedded once, and the run is one on embeddings."""

import json
import time
from functools import partial
from pathlib import Path

import torch
from hydra.utils import get_object
from torch import Tensor, nn

from sslpl.config.identity import Config
from sslpl.data.augmentation import Augmentation
from sslpl.data.embeddings import Embeddings
from sslpl.data.variants import subset_images
from sslpl.distributed.collectives import on_rank_zero
from sslpl.distributed.world import World
from sslpl.learn.embedding import Embedder, embedding_batches
from sslpl.learn.embedding_files import cached_embeddings
from sslpl.messages import print_notice
from sslpl.models.embedding_head import EmbeddingProbe, embedding_width
from sslpl.models.frozen import inference_batch_size
from sslpl.models.starting_weights import LinearProbe
from sslpl.runtime import Runtime
from sslpl.types import Dataset, Images, UserError

CACHE = ".embeddings"  # folder in the output folder, of all runs


def embeds_once(config: Config) -> bool:
    """True if a run embeds each of its images once, because its backbone is frozen and nothing is augmented."""
    return is_unaugmented(config) and has_images(config)


def is_unaugmented(config: Config) -> bool:
    """True if a run's backbone is frozen and its images are not augmented; imports nothing that the config names.

    A config without the key is older than it: its run augmented.
    """
    return bool(config["backbone"].get("freeze", False)) and not config["training"].get("augment", True)


def has_images(config: Config) -> bool:
    """True unless the dataset consists of embeddings."""
    return bool(getattr(get_object(config["dataset"]["_target_"]), "has_images", True))


def build_embedder(
    node: Config, network: nn.Module, dataset: Dataset, device: torch.device, bfloat16: bool
) -> Embedder:
    """Builds the embedder of a backbone's config from its built network, frozen or not."""
    probe = network if isinstance(network, LinearProbe) else LinearProbe(network)
    whole = EmbeddingProbe(probe.network, embedding_width(probe, dataset.train.shape)).to(device)
    normalize = Augmentation(
        dataset.train.shape, dataset.mean, dataset.std, flip=False, padding=0, cutout=0, device=device
    ).normalize
    normalization = json.dumps([dataset.train.shape, dataset.mean, dataset.std])
    return Embedder(whole, normalize, normalization, architecture(node), device, bfloat16)


def architecture(node: Config) -> str:
    """Describes the network of a backbone's config: all keys but those of its weights and its dropout."""
    ignored = ("weights", "weights_fingerprint", "freeze", "dropout")
    return json.dumps({key: value for key, value in node.items() if key not in ignored}, sort_keys=True)


def embed_dataset(embedder: Embedder, dataset: Dataset, runtime: Runtime, world: World) -> Dataset:
    """Returns the dataset with its images replaced by their embeddings, which are computed or read."""
    runtime.set_threads(dataset.train.shape, world)
    get = partial(embeddings_of, Path(runtime.output_dir) / CACHE, embedder)
    if runtime.dry_run:
        get = partial(placeholder_embeddings, embedder)
    elif world.size > 1:  # the others read what the first process computes, if they see its disk
        on_rank_zero(world, lambda: [len(get(images)) for images in (dataset.train, dataset.test)])
    train, test = (Embeddings(get(images), None, False) for images in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def embeddings_of(folder: Path, embedder: Embedder, images: Images) -> Tensor:
    """Returns the cached embeddings [N, D]; UserError if the folder of the cache cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"runtime.output_dir={folder.parent}: cannot be written ({reason})") from error
    return cached_embeddings(folder, embedder, images)


def placeholder_embeddings(embedder: Embedder, images: Images) -> Tensor:
    """Returns zeros [N, D] for a dry run, and prints how long the embeddings would take, from one timed batch."""
    count = min(len(images), inference_batch_size(embedder.device, *images.shape[1:]))
    sample = subset_images(images, torch.arange(count))
    started = time.monotonic()
    for _ in embedding_batches(embedder, sample):
        pass
    seconds = (time.monotonic() - started) / count * len(images)
    line = f"{len(images):,} images would be embedded once, in about {seconds:,.0f} s"
    print_notice(f"{line}, unless their embeddings exist")
    return torch.zeros(1, embedder.width).expand(len(images), -1)
