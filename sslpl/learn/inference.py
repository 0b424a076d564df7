"""What the current networks say of images, and how good that is."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sslpl.distributed.collectives import broadcast_shards
from sslpl.learn.prediction_table import PredictionTable
from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.types import Features, Images, Predictions


def predict(setup: Setup, backbone: nn.Module, module: nn.Module | None, images: Images, index: Tensor) -> Predictions:
    """Logits, embeddings and predicted losses of the images at `index`, without augmentation or dropout.

    Large tables lie in files: see `Table`. Several processes predict a part each, and all have the whole; of fewer
    images than processes each predicts all.
    """
    world = setup.world
    if len(index) == 0:
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        widths = (len(setup.dataset.class_names), channels[-1])
        none, embedding = (torch.empty(0, width, device=setup.device) for width in widths)
        return Predictions(index, none, embedding, None if module is None else none[:, 0])
    if not 1 < world.size <= len(index):
        return predict_shard(setup, backbone, module, images, index)
    own, lengths = index[world.shard(len(index))], world.shard_sizes(len(index))
    _, *values = predict_shard(setup, backbone, module, images, own)
    tables = (
        concatenate_parts(broadcast_shards(world, part, lengths), len(index)) if part is not None else None
        for part in values
    )
    return Predictions(index, *tables)  # type: ignore[arg-type]


def concatenate_parts(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Parts of a table, one below the other."""
    table = PredictionTable(rows)
    for part in parts:
        table.append(part)
    return table.whole()


def predict_shard(
    setup: Setup, backbone: nn.Module, module: nn.Module | None, images: Images, index: Tensor
) -> Predictions:
    """The same in this process."""
    frozen = FrozenBackbone(backbone, setup.bfloat16)
    logits, embeddings, losses = (PredictionTable(len(index)) for _ in range(3))
    with torch.inference_mode():
        for batch in images.batches(torch.split(index, inference_batch_size(setup.device, *images.shape[1:]))):
            scores, embedding, loss = forward_images(frozen, module, setup.augmentation.plain(batch))
            logits.append(scores)
            embeddings.append(embedding)
            if loss is not None:
                losses.append(loss)
    predicted = losses.whole() if isinstance(module, LossPredictionModule) else None
    return Predictions(index, logits.whole(), embeddings.whole(), predicted)


def forward_images(
    network: Callable[[Tensor], Features], module: nn.Module | None, images: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [B, classes], embeddings [B, D] and, with a module, predicted losses [B] of normalized images."""
    features = network(images)
    loss = module(features.maps) if isinstance(module, LossPredictionModule) else None
    return features.logits, features.embedding, loss
