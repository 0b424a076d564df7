"""Contexts for tests of query strategies: small networks on random images."""

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from sslpl.data.augmentation import Augmentation
from sslpl.data.images import TensorImages
from sslpl.models.backbone import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.query.context import Context, Weights
from sslpl.types import Features, Predictions

CLASSES = 5


@cache
def build_networks(seed: int) -> tuple[list[nn.Module], LossPredictionModule]:
    """Builds five backbones and a module; copy them before use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [small_cnn(num_classes=CLASSES, in_channels=1).eval() for _ in range(5)]
        return networks, LossPredictionModule(networks[0].channels)


def context(pool: int = 60, labeled: int = 20, seed: int = 0, ties: bool = False, truth: bool | None = True) -> Context:
    """Returns a context over `pool` gray images of 8x8 pixels in 5 classes; with `ties` all images are equal."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(pool, generator=rng)
    data = torch.randint(256, (pool, 1, 8, 8), generator=rng, dtype=torch.uint8)
    data = data[:1].expand_as(data).clone() if ties else data
    classes = torch.randint(CLASSES, (pool,), generator=rng)
    networks, module = copy.deepcopy(build_networks(seed))
    images = TensorImages(data)
    augmentation = Augmentation((1, 8, 8), (0.5,), (0.25,), flip=False, padding=1, cutout=4)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        network = copy.deepcopy(networks[0])
        network.load_state_dict(networks[0].state_dict() if weights is None else weights)
        with torch.no_grad():
            logits, maps, embedding = network(augmentation.normalize(data[index]))
            return Predictions(index, logits, embedding, module(maps) if weights is None else None)

    return Context(
        unlabeled=order[labeled:].sort().values,
        labeled=order[:labeled],
        labels=classes[order[:labeled]],
        candidates=pool - labeled,
        num_classes=CLASSES,
        device=torch.device("cpu"),
        backbone=networks[0],
        module=module,
        images=images,
        normalize=augmentation.normalize,
        augment=augmentation.random_weak,
        predict=predict,
        previous_weights=networks[1].state_dict(),
        snapshots=[network.state_dict() for network in networks[2:]],
        truth=classes if truth else None,
    )


class PixelNetwork(nn.Module):
    """A linear head over the first pixels of an image."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.head = nn.Linear(dimensions, CLASSES)

    def forward(self, images: Tensor) -> Features:
        embedding = images.flatten(1)[:, : self.head.in_features]
        return Features(self.head(embedding), (), embedding)


def table_context(pool: int, labeled: int = 20, dimensions: int = 8) -> Context:
    """Returns a context over many images whose predictions are precomputed random numbers."""
    rng, base = torch.Generator().manual_seed(0), context()
    embedding = torch.rand(pool, dimensions, generator=rng)
    logits, loss = torch.randn(pool, CLASSES, generator=rng), torch.rand(pool, generator=rng)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        return Predictions(index, logits[index] * (1 if weights is None else 2), embedding[index], loss[index])

    return replace(
        base,
        unlabeled=torch.arange(labeled, pool),
        labeled=torch.arange(labeled),
        labels=torch.randint(CLASSES, (labeled,), generator=rng),
        candidates=200,
        backbone=PixelNetwork(dimensions),
        images=TensorImages(torch.randint(256, (pool, 1, 8, 8), generator=rng, dtype=torch.uint8)),
        predict=predict,
        truth=torch.randint(CLASSES, (pool,), generator=rng),
    )


def predicting(logits: Tensor, embedding: Tensor | None = None, predicted_loss: Tensor | None = None) -> Context:
    """Returns a context whose unlabeled images 0..U-1 have these predictions."""
    count = len(logits)
    precomputed = Predictions(torch.arange(count), logits, logits if embedding is None else embedding, predicted_loss)
    empty = torch.empty(0, dtype=torch.int64)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        raise AssertionError("must not predict anything")

    return Context(
        unlabeled=precomputed.index,
        labeled=empty,
        labels=empty,
        candidates=count,
        num_classes=logits.shape[1],
        device=torch.device("cpu"),
        backbone=nn.Identity(),
        module=None,
        images=TensorImages(torch.zeros(count, 1, 8, 8, dtype=torch.uint8)),
        normalize=lambda images: images.float(),
        augment=lambda images, _: images.float(),
        predict=predict,
        precomputed=precomputed,
    )
