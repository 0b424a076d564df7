"""What the pool of any dataset can be made into: uneven classes, wrong labels; its test set stays as it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from sslpl.class_balance import geometric_frequencies
from sslpl.data.images import TensorImages
from sslpl.seeds import rng, shuffled
from sslpl.types import Dataset, Images, Ratio, Share, UserError


@dataclass(frozen=True)
class PoolVariant:
    """The keys of `dataset` that any dataset has; the defaults leave it as it is."""

    imbalance: Literal["none", "long_tailed", "stepped"] = "none"
    imbalance_ratio: Ratio | None = None  # images of the largest class over those of the smallest
    label_noise: Share = 0.0  # of the pool's labels


def apply_variant(dataset: Dataset, variant: PoolVariant, seed: int) -> Dataset:
    """The dataset with fewer images in some classes, the same for every seed, and wrong labels, drawn from the seed.

    Methods that share a seed share the wrong labels. The true ones stay with the dataset, for analysis alone.
    """
    classes = len(dataset.class_names)
    if variant != PoolVariant() and bool((dataset.train_labels < 0).any()):
        raise UserError("dataset.imbalance and dataset.label_noise need the label of every image of the pool")
    if variant.imbalance != "none":
        sizes = class_sizes(dataset.train_labels, classes, variant.imbalance, variant.imbalance_ratio or 1.0)
        kept = sample_per_class(dataset.train_labels, sizes, rng(0, "imbalance"))
        dataset = dataset._replace(
            train=subset_images(dataset.train, kept),
            train_labels=dataset.train_labels[kept],
            true_labels=None if dataset.true_labels is None else dataset.true_labels[kept],
            paths=tuple(dataset.paths[place] for place in kept.tolist()) if dataset.paths else (),
        )
    if variant.label_noise > 0:
        if classes < 2:
            raise UserError(f"dataset.label_noise={variant.label_noise}: must be 0 with a single class")
        noisy = add_label_noise(dataset.train_labels, classes, variant.label_noise, rng(seed, "label_noise"))
        truth = dataset.train_labels if dataset.true_labels is None else dataset.true_labels
        dataset = dataset._replace(train_labels=noisy, true_labels=truth)
    return dataset


def class_sizes(labels: Tensor, classes: int, kind: str, ratio: float) -> Tensor:
    """How many images each class [classes] keeps, one or more of those that it has, in the order of the classes.

    long_tailed: n_max x ratio^(-i / (C - 1)) (Cui et al. 2019, cut to a whole number as in their code); stepped: the
    last half of the classes n_max / ratio (Buda et al. 2018). n_max is the size of the largest class.
    """
    counts = torch.bincount(labels, minlength=classes)
    share = geometric_frequencies(classes, ratio)
    if kind == "stepped":
        share = torch.ones_like(share)
        share[classes - classes // 2 :] = 1 / ratio
    # Rounded before it is cut: 5000 / (5000 / 330) is 330.
    wanted = (counts.max() * share).round(decimals=6).long().clamp(min=1)
    return torch.minimum(wanted, counts)


def sample_per_class(labels: Tensor, sizes: Tensor, generator: Generator) -> Tensor:
    """Positions, ascending, of as many random images of each class as `sizes` [classes] says."""
    order = shuffled(torch.arange(len(labels)), len(labels), generator)
    parts = [order[labels[order] == label][:size] for label, size in enumerate(sizes.tolist())]
    return torch.cat(parts).sort().values


def add_label_noise(labels: Tensor, classes: int, share: float, generator: Generator) -> Tensor:
    """Labels of which a share, rounded, is replaced by one of the other classes, each as likely (symmetric noise)."""
    wrong = shuffled(torch.arange(len(labels)), len(labels), generator)[: int(share * len(labels) + 0.5)]
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + torch.randint(1, classes, wrong.shape, generator=generator)) % classes
    return noisy


def subset_images(images: Images, index: Tensor) -> Images:
    """The images at some positions, as a set of their own."""
    return TensorImages(images.data[index]) if isinstance(images, TensorImages) else ImageSubset(images, index)


class ImageSubset:
    """The images of another set at `index`; see `Images`."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images, self.index, self.shape = images, index, images.shape

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "ImageSubset":
        """The same images, delivered to another device."""
        return ImageSubset(self.images.to(device), self.index)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each index tensor in turn, [B, C, H, W] uint8."""
        return self.images.batches([self.index[index] for index in indices])
