"""The conventional implementation to compare with: PIL images through a DataLoader, float32, scikit-learn.

A script that follows the published protocol. Of sslpl it uses only the initial weights, the ranking loss and the
numbers of the schedule; the module's convolutions are computed one by one.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, SequentialSampler, Subset, SubsetRandomSampler
from torchvision import transforms

from sslpl.models.backbone import Staged
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.ranking import bce_ranking_loss
from sslpl.setup import Setup
from sslpl.training import Training
from sslpl.types import Dataset

Transform = Callable[[Image.Image], Tensor]
EVAL_BATCH_SIZE = 128  # images per batch of a forward pass, as published


class PilImages(torch.utils.data.Dataset):
    """A dataset of arrays [height, width, channels], converted to PIL images and transformed on access."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], object]) -> None:
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        self.arrays = arrays[..., 0] if arrays.shape[3] == 1 else arrays
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, position: int) -> tuple[object, int]:
        return self.transform(Image.fromarray(self.arrays[position])), self.labels[position]


def normalize(dataset: Dataset) -> Transform:
    """Returns the transform of an image to a normalized tensor."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)])


def weak(dataset: Dataset, also: Sequence[Callable] = ()) -> Transform:
    """Returns the weak augmentation: flip, crop, `also`, normalization."""
    size = dataset.train.shape[1]
    moves = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(size, padding=dataset.padding)]
    return transforms.Compose([*moves, *also, normalize(dataset)])


def strong(dataset: Dataset) -> Transform:
    """Returns the strong augmentation: flip, crop, two operations, cut-out, normalization."""
    return weak(dataset, [rand_augment, CutOut(dataset.cutout)])


def pair(dataset: Dataset) -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
    """Returns the transform of an image to a weak and a strong view."""
    first, second = weak(dataset), strong(dataset)
    return lambda image: (first(image), second(image))


def affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Applies an affine map by nearest-neighbor interpolation; pixels from outside the image are black."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def enhance(kind: type) -> Callable[[Image.Image, int, int], Image.Image]:
    """Returns an operation that enhances an image, such as its brightness, at a level from 1 to 9."""
    return lambda image, level, _sign: kind(image).enhance(0.09 * level + 0.05)


OPERATIONS: list[Callable[[Image.Image, int, int], Image.Image]] = [
    lambda image, _level, _sign: image,
    lambda image, _level, _sign: ImageOps.autocontrast(image),
    lambda image, _level, _sign: ImageOps.equalize(image),
    lambda image, level, _sign: ImageOps.posterize(image, 4 + 4 * level // 10),
    lambda image, level, _sign: ImageOps.solarize(image, 256 - 256 * level // 10),
    *map(enhance, (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness)),
    lambda image, level, sign: image.rotate(sign * 3 * level),
    lambda image, level, sign: affine(image, 1, sign * 0.03 * level, 0, 0, 1, 0),
    lambda image, level, sign: affine(image, 1, 0, 0, sign * 0.03 * level, 1, 0),
    lambda image, level, sign: affine(image, 1, 0, int(sign * 0.03 * level * image.width), 0, 1, 0),
    lambda image, level, sign: affine(image, 1, 0, 0, 0, 1, int(sign * 0.03 * level * image.height)),
]


def rand_augment(image: Image.Image) -> Image.Image:
    """Draws two operations with replacement and applies each with probability 1/2."""
    for operation in random.choices(OPERATIONS, k=2):
        level, sign = random.randint(1, 9), random.choice((-1, 1))
        if random.random() < 0.5:
            image = operation(image, level, sign)
    return image


class CutOut:
    """Covers a random square of an image with gray."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        corner = [int(max(0, random.uniform(0, side) - self.size / 2)) for side in image.size]
        ends = [min(side, low + self.size) for side, low in zip(image.size, corner, strict=True)]
        image = image.copy()
        ImageDraw.Draw(image).rectangle((*corner, *ends), 127 if image.mode == "L" else (127, 127, 127))
        return image


def shuffled_loader(images: PilImages, index: Sequence[int], batch_size: int) -> DataLoader:
    """Returns batches of the images at `index` in random order."""
    return DataLoader(images, batch_size, sampler=SubsetRandomSampler(list(index)), num_workers=0)


def ordered_loader(images: PilImages, index: Sequence[int]) -> DataLoader:
    """Returns batches of the images at `index` in that order."""
    part = Subset(images, list(index))
    return DataLoader(part, EVAL_BATCH_SIZE, sampler=SequentialSampler(part), num_workers=0)


class ConventionalModule(nn.Module):
    """The loss prediction module with explicit convolutions; it shares the weights of the given module."""

    def __init__(self, module: LossPredictionModule) -> None:
        super().__init__()
        self.levels, self.head = module.levels, module.head

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Predicts the losses [B] from the stage outputs of the backbone."""
        hidden = []
        for level, stage in zip(self.levels, maps, strict=True):
            convolved = stage if level.conv is None else level.conv(stage)
            hidden.append(torch.relu(level.linear(convolved.mean(dim=(2, 3)))))
        return self.head(torch.cat(hidden, dim=1)).squeeze(1)


def build_networks(setup: Setup) -> tuple[Staged, ConventionalModule]:
    """Returns the networks of a setup with the same initial weights, in float32 and channels-first format."""
    backbone, module = setup.build(0)
    assert isinstance(module, LossPredictionModule)
    return backbone.to(memory_format=torch.contiguous_format), ConventionalModule(module)


class Trainer:
    """Trains backbone and module for one cycle, with new optimizers."""

    def __init__(self, backbone: Staged, module: ConventionalModule, training: Training, device: torch.device) -> None:
        self.backbone, self.module, self.training, self.device = backbone, module, training, device
        self.optimizers = [self.sgd(backbone, training.rate), self.sgd(module, training.module_rate)]
        self.finetuner = self.sgd(module, training.finetune_rate)

    def sgd(self, network: nn.Module, rate: float) -> torch.optim.SGD:
        """Returns an SGD optimizer with the published options."""
        training = self.training
        return torch.optim.SGD(
            network.parameters(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
        )

    def train_epoch(self, loader: DataLoader, epoch: int) -> None:
        """Runs one epoch of joint training."""
        self.start_epoch(epoch)
        for images, labels in loader:
            self.joint_step(images, labels, self.training.detached(epoch))

    def start_epoch(self, epoch: int) -> None:
        """Switches to training mode and sets the learning rates of an epoch."""
        self.backbone.train().requires_grad_(True)
        self.module.train()
        rates = (self.training.rate, self.training.module_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self.training.decay(epoch)

    def joint_step(self, images: Tensor, labels: Tensor, detached: bool) -> None:
        """Takes one step of joint training."""
        images, labels = images.to(self.device), labels.to(self.device)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        logits, maps, _ = self.backbone(images)
        predicted = self.module([stage.detach() for stage in maps] if detached else maps)
        losses = cross_entropy(logits, labels, reduction="none")
        (losses.mean() + self.training.ranking_weight * bce_ranking_loss(predicted, losses)).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def start_finetune(self) -> None:
        """Freezes the backbone and switches the module to training mode."""
        self.backbone.eval().requires_grad_(False)
        self.module.train()

    def finetune_step(self, images: Tensor, labels: Tensor, views: Sequence[Tensor], threshold: float | None) -> int:
        """Takes one step of the fine-tune; returns the number of confident images.

        With the threshold None it is the median of the highest probabilities: half of the images are confident.
        """
        images, labels, weak_view, strong_view = (x.to(self.device) for x in (images, labels, *views))
        self.finetuner.zero_grad()
        logits, maps, _ = self.backbone(images)
        loss = bce_ranking_loss(self.module(maps), cross_entropy(logits, labels, reduction="none"))
        probabilities = self.backbone(weak_view).logits.softmax(dim=1)
        logits, maps, _ = self.backbone(strong_view)
        top = probabilities.amax(dim=1)
        chosen = (top >= (top.median() if threshold is None else threshold)).nonzero().flatten()
        chosen = chosen[: len(chosen) // 2 * 2]
        predicted = self.module(maps)[chosen]
        pseudo = bce_ranking_loss(predicted, cross_entropy(logits[chosen], probabilities[chosen], reduction="none"))
        (loss + pseudo).backward()
        self.finetuner.step()
        return len(chosen)


@torch.no_grad()
def predictions(
    backbone: Staged, module: ConventionalModule, loader: DataLoader, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns logits, embeddings, predicted losses and classes of all images of a loader, on the CPU."""
    backbone.eval()
    module.eval()

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for images, labels in loader:
            logits, maps, embedding = backbone(images.to(device))
            yield logits.cpu(), embedding.cpu(), module(maps).cpu(), labels

    logits, embedding, predicted, labels = map(torch.cat, zip(*batches(), strict=True))
    return logits, embedding, predicted, labels


def complete_linkage(points: np.ndarray, clusters: int) -> np.ndarray:
    """Returns the clusters of points by scikit-learn's complete linkage."""
    return AgglomerativeClustering(n_clusters=clusters, linkage="complete").fit_predict(points)
