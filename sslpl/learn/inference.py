"""Inference: predictions of the current networks without augmentation."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sslpl.distributed.collectives import broadcast_shards
from sslpl.learn.prediction_table import PredictionTable
from sslpl.learn.test_time_augmentation import averaged_logits
from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.training import TestViews
from sslpl.types import Features, Images, Predictions


def predict(
    setup: Setup,
    backbone: nn.Module,
    module: nn.Module | None,
    images: Images,
    index: Tensor,
    views: TestViews = "none",
) -> Predictions:
    """Returns logits, embeddings and predicted losses of the images at `index`, without augmentation or dropout.

    With test `views` the logits are averaged over these; embeddings and predicted losses are those of the plain images.
    Large results are stored in files: see `PredictionTable`. Each process predicts a shard, and all return the whole;
    if there are fewer images than processes, each predicts all of them.
    """
    world = setup.world
    if len(index) == 0:
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        widths = (len(setup.dataset.class_names), channels[-1])
        logits, embedding = (torch.empty(0, width, device=setup.device) for width in widths)
        return Predictions(index, logits, embedding, None if module is None else logits[:, 0])
    if not 1 < world.size <= len(index):
        return predict_shard(setup, backbone, module, images, index, views)
    local_index, lengths = index[world.shard(len(index))], world.shard_sizes(len(index))
    _, *shards = predict_shard(setup, backbone, module, images, local_index, views)
    tables = (
        concatenate_parts(broadcast_shards(world, shard, lengths), len(index)) if shard is not None else None
        for shard in shards
    )
    return Predictions(index, *tables)  # type: ignore[arg-type]


def concatenate_parts(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Returns the concatenation of the parts of a table with `rows` rows."""
    table = PredictionTable(rows)
    for part in parts:
        table.append(part)
    return table.whole()


def predict_shard(
    setup: Setup,
    backbone: nn.Module,
    module: nn.Module | None,
    images: Images,
    index: Tensor,
    views: TestViews = "none",
) -> Predictions:
    """Returns the same predictions, computed by this process alone."""
    frozen = FrozenBackbone(backbone, setup.bfloat16)
    logits, embeddings, losses = (PredictionTable(len(index)) for _ in range(3))
    with torch.inference_mode():
        for batch in images.batches(torch.split(index, inference_batch_size(setup.device, *images.shape[1:]))):
            normalized = setup.augmentation.normalize(batch)
            scores, embedding, loss = forward_images(frozen, module, normalized)
            if views != "none":
                scores = averaged_logits(frozen, normalized, views, setup.augmentation)
            logits.append(scores)
            embeddings.append(embedding)
            if loss is not None:
                losses.append(loss)
    predicted = losses.whole() if isinstance(module, LossPredictionModule) else None
    return Predictions(index, setup.turns.wait_for(logits.whole()), embeddings.whole(), predicted)


def forward_images(
    network: Callable[[Tensor], Features], module: nn.Module | None, images: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns logits [B, classes], embeddings [B, D] and, with a module, predicted losses [B] of normalized images."""
    features = network(images)
    loss = module(features.maps) if isinstance(module, LossPredictionModule) else None
    return features.logits, features.embedding, loss
