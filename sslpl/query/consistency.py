"""Consistency: disagreement of the predictions for augmented views of an image (Gao et al. 2020)."""

import torch
from torch import Generator, Tensor

from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.query.context import needs_images
from sslpl.types import Count, QueryContext


@needs_images
def consistency(context: QueryContext, rng: Generator, *, views: Count = 50) -> Tensor:
    """Computes the variance of the class probabilities over views of an image, summed over classes [U], 0 to 1.

    Gao et al., ECCV 2020: the image itself and `views` random flips and crops of it. They select the highest scores,
    and train by MixMatch; `task_ssl` trains the backbone on unlabeled images here. Their code is not published, and
    their number of views could not be confirmed: 50 is that of a public reproduction.
    """
    network = FrozenBackbone(context.backbone, bfloat16=False)
    height, width = next(context.normalized_images([context.unlabeled[:1]])).shape[2:]
    batches = torch.split(context.unlabeled, inference_batch_size(context.device, height, width))
    parts = []
    with torch.no_grad():
        for rows in context.augmented_images(batches, views, rng):
            probability = torch.stack([network(images).logits.double().softmax(dim=1) for images in rows])
            parts.append(probability.var(dim=0, correction=0).sum(dim=1))
    return torch.cat(parts)
