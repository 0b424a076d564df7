"""Sizes, images and setups of the benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sslpl.budget import Budget
from sslpl.data.augmentation import Augmentation
from sslpl.data.datasets import CIFAR100_STATISTICS, cifar100, fashion_mnist
from sslpl.data.images import TensorImages
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.resnet import resnet18
from sslpl.query.score_then_select import score_then_select
from sslpl.query.scorers import predicted_loss
from sslpl.query.selective_clustering import selective_clustering
from sslpl.ranking import bce_ranking_loss
from sslpl.runtime import has_bfloat16
from sslpl.seeds import build_seeded
from sslpl.setup import Setup, SSLMethod, acceleration_on
from sslpl.ssl.rules import pseudo_label_soft
from sslpl.training import Training
from sslpl.types import Dataset, PseudoLabel, UserError

FASHION_ROOT = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the benchmarks; the defaults are those of the documented figures."""

    augmented: int = 1536  # images per augmentation call
    batch: int = 128
    unlabeled: int = 512  # images per fine-tune step
    scored: int = 3072  # images of pool_scoring
    linkage_share: float = 1.0  # of the number of points in a benchmark's name
    run_pool: int = 4000
    run_test: int = 1000
    run_labels: int = 200  # 5% of the pool, as published
    run_epochs: int = 20


SMALL = Sizes(48, 16, 32, 96, 0.02, 400, 100, 40, 2)


class BenchmarkOptions(NamedTuple):
    """The options of all benchmarks."""

    device: torch.device
    sizes: Sizes
    repeats: int | None  # None: the default of each benchmark
    root: str | None  # folder of the published datasets
    pool: int  # this and the following: of `protocol`
    cycles: int
    epochs: int
    finetune_epochs: int


def synthetic(pool: int, test: int, classes: int, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Dataset:
    """Returns random images that can be learned: a smooth pattern for each class, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = interpolate(torch.randn(classes, shape[0], 4, 4, generator=generator), shape[1:], mode="bilinear")

    def part(count: int) -> tuple[TensorImages, Tensor]:
        labels, images = torch.randint(classes, (count,), generator=generator), []
        for block in labels.split(4096):
            noise = torch.randn(len(block), *shape, generator=generator)
            images.append((128 + 40 * patterns[block] + 40 * noise).clamp(0, 255).to(torch.uint8))
        return TensorImages(torch.cat(images)), labels

    (train, train_labels), (held_out, test_labels) = part(pool), part(test)
    mean, std = CIFAR100_STATISTICS if shape[0] == 3 else ((0.5,), (0.5,))
    names = tuple(map(str, range(classes)))
    cutout = min(16, shape[1] // 2)
    return Dataset(train, train_labels, held_out, test_labels, names, mean, std, True, cutout, shape[1] // 8)


def cifar_like(bench: BenchmarkOptions, pool: int, test: int) -> tuple[Dataset, str]:
    """Returns the first images of CIFAR-100 if they are under the root, else synthetic ones, and a description."""
    try:
        if bench.root is not None:
            return first_images(cifar100(bench.root, download=False), pool, test), "CIFAR-100"
    except UserError as error:
        print(f"synthetic images: {error}")
    return synthetic(pool, test, 100), "synthetic images in 100 classes"


def fashion_like(bench: BenchmarkOptions, pool: int, test: int) -> tuple[Dataset, str]:
    """Returns the first images of Fashion-MNIST if they are found, else synthetic ones, and a description."""
    for root in (bench.root, FASHION_ROOT):
        if root is not None and Path(root).is_dir():
            try:
                return first_images(fashion_mnist(root, download=False), pool, test), "Fashion-MNIST"
            except UserError:
                continue
    return synthetic(pool, test, 10, (1, 28, 28)), "synthetic images in 10 classes"


def first_images(dataset: Dataset, pool: int, test: int) -> Dataset:
    """Returns a dataset with only the first images of the pool and of the test set."""
    return dataset._replace(
        train=TensorImages(dataset.train.data[:pool]),
        train_labels=dataset.train_labels[:pool],
        test=TensorImages(dataset.test.data[:test]),
        test_labels=dataset.test_labels[:test],
    )


def make_setup(
    dataset: Dataset,
    device: torch.device,
    training: Training,
    budget: Budget,
    seed: int = 0,
    ssl: SSLMethod = pseudo_label_soft,
) -> Setup:
    """Returns the setup of SSLPM on ResNet-18, with the default precision and compilation of the device."""
    dataset = dataset._replace(train=dataset.train.to(device), test=dataset.test.to(device))
    options = {"flip": dataset.flip, "padding": dataset.padding, "cutout": dataset.cutout, "device": device}
    augmentation = Augmentation(dataset.train.shape, dataset.mean, dataset.std, **options)

    def build(cycle: int) -> tuple[nn.Module, nn.Module | None]:
        classes, channels = len(dataset.class_names), dataset.train.shape[0]
        backbone = build_seeded(lambda: resnet18(num_classes=classes, in_channels=channels), seed, f"backbone {cycle}")
        module = build_seeded(lambda: LossPredictionModule(backbone.channels), seed, f"module {cycle}")
        return backbone.to(device, memory_format=torch.channels_last), module.to(device)

    def query(context, n, rng):
        return score_then_select(context, n, rng, scorer=predicted_loss, selector=selective_clustering)

    return Setup(
        dataset=dataset,
        build=build,
        augmentation=augmentation,
        ranking=bce_ranking_loss,
        ssl=ssl,
        query=query,
        budget=budget.in_images(len(dataset.train)),
        training=training,
        seed=seed,
        device=device,
        bfloat16=has_bfloat16(device),
        capture_steps=device.type == "cuda",
        acceleration=acceleration_on(device),
    )


def half_confident(logits: Tensor) -> PseudoLabel:
    """Pseudo-labels with the median of the highest probabilities as threshold: half of the images are confident."""
    probabilities = logits.float().softmax(dim=1)
    top = probabilities.amax(dim=1)
    return PseudoLabel(probabilities, (top >= top.median()).float())


@torch.no_grad()
def calibrate(setup: Setup, backbone: nn.Module) -> None:
    """Updates the batch norm statistics by forward passes over images, as training would."""
    index = torch.arange(min(256, len(setup.dataset.train)))
    images = setup.augmentation.normalize(next(iter(setup.dataset.train.batches([index]))))
    backbone.train()
    for _ in range(20):
        backbone(images)


def synthetic_embeddings(points: int, seed: int = 0) -> np.ndarray:
    """Returns rectified points in 100 classes, like embeddings of a trained network: float32 [points, 512]."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(0, 0.7, (100, 512)).astype(np.float32)
    noise = generator.normal(-0.3, 0.5, (points, 512)).astype(np.float32)
    return np.maximum(centers[generator.integers(0, 100, points)] + noise, 0)
