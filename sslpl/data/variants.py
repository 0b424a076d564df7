"""Class imbalance and label noise for the pool of any dataset; the test set stays unchanged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.class_balance import geometric_frequencies
from sslpl.data.embeddings import Embeddings
from sslpl.data.images import TensorImages
from sslpl.seeds import rng, shuffled
from sslpl.types import Dataset, Images, Ratio, Share, UserError


@dataclass(frozen=True)
class PoolVariant:
    """The `dataset` keys that every dataset has; the defaults leave it unchanged."""

    imbalance: Literal["none", "long_tailed", "stepped"] = "none"
    imbalance_ratio: Ratio | None = None  # size of the largest class divided by that of the smallest
    label_noise: Share = 0.0  # share of the pool's labels that are wrong


def apply_variant(dataset: Dataset, variant: PoolVariant, seed: int) -> Dataset:
    """Returns the dataset with class imbalance, the same for every seed, and label noise, drawn from the seed.

    Methods that share a seed share the wrong labels. The dataset keeps the true labels for analysis only.
    """
    classes = len(dataset.class_names)
    if variant != PoolVariant() and bool((dataset.train_labels < 0).any()):
        raise UserError("dataset.imbalance and dataset.label_noise need the label of every image of the pool")
    if variant.imbalance != "none":
        sizes = class_sizes(dataset.train_labels, classes, variant.imbalance, variant.imbalance_ratio or 1.0)
        index = sample_per_class(dataset.train_labels, sizes, rng(0, "imbalance"))
        dataset = dataset._replace(
            train=subset_images(dataset.train, index),
            train_labels=dataset.train_labels[index],
            true_labels=None if dataset.true_labels is None else dataset.true_labels[index],
            paths=tuple(dataset.paths[i] for i in index.tolist()) if dataset.paths else (),
            files=tuple(dataset.files[i] for i in index.tolist()) if dataset.files else (),
        )
    if variant.label_noise > 0:
        if classes < 2:
            raise UserError(f"dataset.label_noise={variant.label_noise}: must be 0 with a single class")
        noisy = add_label_noise(dataset.train_labels, classes, variant.label_noise, rng(seed, "label_noise"))
        true_labels = dataset.train_labels if dataset.true_labels is None else dataset.true_labels
        dataset = dataset._replace(train_labels=noisy, true_labels=true_labels)
    return dataset


def class_sizes(labels: Tensor, classes: int, kind: str, ratio: float) -> Tensor:
    """Computes how many images each class keeps, int64 [classes]: at least one and at most those that it has.

    long_tailed: n_max x ratio^(-i / (C - 1)) (Cui et al. 2019, rounded down as in their code); stepped: the
    last half of the classes n_max / ratio (Buda et al. 2018). n_max is the size of the largest class.
    """
    counts = torch.bincount(labels, minlength=classes)
    share = geometric_frequencies(classes, ratio)
    if kind == "stepped":
        share = torch.ones_like(share)
        share[classes - classes // 2 :] = 1 / ratio
    # Rounded to 6 decimals before it is rounded down, so that 5000 / (5000 / 330) is 330.
    sizes = (counts.max() * share).round(decimals=6).long().clamp(min=1)
    return torch.minimum(sizes, counts)


def sample_per_class(labels: Tensor, sizes: Tensor, generator: Generator) -> Tensor:
    """Draws `sizes` [classes] random images of each class, and returns their positions in ascending order."""
    order = shuffled(torch.arange(len(labels)), len(labels), generator)
    parts = [order[labels[order] == label][:size] for label, size in enumerate(sizes.tolist())]
    return torch.cat(parts).sort().values


def add_label_noise(labels: Tensor, classes: int, share: float, generator: Generator) -> Tensor:
    """Replaces a share of the labels by another class, drawn uniformly (symmetric noise)."""
    wrong = shuffled(torch.arange(len(labels)), len(labels), generator)[: int(share * len(labels) + 0.5)]
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + torch.randint(1, classes, wrong.shape, generator=generator)) % classes
    return noisy


def subset_images(images: Images, index: Tensor) -> Images:
    """Returns the images at the positions `index` as a new set."""
    if isinstance(images, Embeddings):
        return images.subset(index)
    return TensorImages(images.data[index]) if isinstance(images, TensorImages) else ImageSubset(images, index)


class ImageSubset:
    """View of the images of another set at the positions `index`; an implementation of `Images`."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images, self.index, self.shape = images, index, images.shape

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "ImageSubset":
        """Returns the same images, delivered to another device."""
        return ImageSubset(self.images.to(device), self.index)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each index tensor, [B, C, H, W] uint8."""
        return self.images.batches([self.index[index] for index in indices])
