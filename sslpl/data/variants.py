"""Variants of any dataset: class imbalance, an open set and label noise of its pool."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from sslpl.arguments import nearest_name
from sslpl.class_balance import geometric_frequencies
from sslpl.data.embeddings import Embeddings
from sslpl.data.images import TensorImages
from sslpl.seeds import rng, shuffled
from sslpl.types import REJECTED, UNLABELED, Dataset, Images, Ratio, Share, ShareBelowOne, UserError

OpenSet = Annotated[
    ShareBelowOne | list[str | int],
    Field(description="a number from 0 to below 1 (a share of the classes) or a list of class names"),
]


@dataclass(frozen=True)
class PoolVariant:
    """The `dataset` keys that every dataset has; the defaults leave it unchanged."""

    imbalance: Literal["none", "long_tailed", "stepped"] = "none"
    imbalance_ratio: Ratio | None = None  # size of the largest class divided by that of the smallest
    label_noise: Share = 0.0  # share of the pool's labels that are wrong
    open_set: OpenSet = 0.0  # classes that are none of the task: a share of all, or their names


def apply_variant(dataset: Dataset, variant: PoolVariant, seed: int) -> Dataset:
    """Returns the dataset with class imbalance and an open set, equal for all seeds, and label noise drawn from it.

    Methods that share a seed share the wrong labels. The dataset keeps the true labels for analysis only.
    """
    if variant == PoolVariant():
        return dataset
    if bool((dataset.train_labels == UNLABELED).any()):
        raise UserError(
            "dataset.imbalance, dataset.label_noise and dataset.open_set need the label of every image of the pool"
        )
    if variant.imbalance != "none":
        classes = len(dataset.class_names)
        sizes = class_sizes(dataset.train_labels, classes, variant.imbalance, variant.imbalance_ratio or 1.0)
        dataset = subset_pool(dataset, sample_per_class(dataset.train_labels, sizes, rng(0, "imbalance")))
    if variant.open_set:
        dataset = without_classes(dataset, open_classes(dataset.class_names, variant.open_set))
    return with_label_noise(dataset, variant.label_noise, seed) if variant.label_noise > 0 else dataset


def subset_pool(dataset: Dataset, index: Tensor) -> Dataset:
    """Returns the dataset with only the images of the pool at the positions `index`."""
    return dataset._replace(
        train=subset_images(dataset.train, index),
        train_labels=dataset.train_labels[index],
        true_labels=None if dataset.true_labels is None else dataset.true_labels[index],
        paths=tuple(dataset.paths[i] for i in index.tolist()) if dataset.paths else (),
        files=tuple(dataset.files[i] for i in index.tolist()) if dataset.files else (),
    )


def open_classes(class_names: Sequence[str], open_set: float | Sequence[str | int]) -> list[int]:
    """Returns the classes of an open set: those that it names, or a rounded share of all, drawn once for all seeds.

    UserError if a name is no class, if the share rounds to no class, or if fewer than two classes are left.
    """
    count = len(class_names)
    if isinstance(open_set, float):
        chosen = shuffled(torch.arange(count), count, rng(0, "open_set"))[: int(open_set * count + 0.5)].tolist()
    else:
        names = list(dict.fromkeys(map(str, open_set)))
        if unknown := [name for name in names if name not in class_names]:
            raise UserError(
                f"dataset.open_set: {unknown[0]} is no class; {nearest_name(unknown[0], list(class_names))}"
            )
        chosen = [class_names.index(name) for name in names]
    if not chosen or len(chosen) > count - 2:
        raise UserError(
            f"dataset.open_set={open_set}: must leave out at least one of {count} classes and keep at least two, "
            f"leaves out {len(chosen)}"
        )
    return sorted(chosen)


def without_classes(dataset: Dataset, excluded: Sequence[int]) -> Dataset:
    """Returns the dataset without some classes: their images stay in the pool, rejected, and leave the test set."""
    kept = [label for label in range(len(dataset.class_names)) if label not in excluded]
    renumbered = torch.full((len(dataset.class_names),), REJECTED)
    renumbered[kept] = torch.arange(len(kept))
    tested = (renumbered[dataset.test_labels] >= 0).nonzero().flatten()
    return dataset._replace(
        train_labels=renumbered[dataset.train_labels],
        true_labels=None if dataset.true_labels is None else renumbered[dataset.true_labels],
        test=subset_images(dataset.test, tested),
        test_labels=renumbered[dataset.test_labels[tested]],
        class_names=tuple(dataset.class_names[label] for label in kept),
    )


def with_label_noise(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Returns the dataset with wrong labels for a share of the images that have a class."""
    classes = len(dataset.class_names)
    if classes < 2:
        raise UserError(f"dataset.label_noise={share}: must be 0 with a single class")
    noisy, has_class = dataset.train_labels.clone(), dataset.train_labels >= 0
    noisy[has_class] = add_label_noise(noisy[has_class], classes, share, rng(seed, "label_noise"))
    true_labels = dataset.train_labels if dataset.true_labels is None else dataset.true_labels
    return dataset._replace(train_labels=noisy, true_labels=true_labels)


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
