"""Monte Carlo dropout at query time: each dropout mask of the embedding is a sampled network (Gal and Ghahramani 2016).

Dropout is applied only before the head and batch norms stay in eval mode, so that embeddings are not recomputed. All
images share a mask: each sample is one network, as BatchBALD requires and the other scorers allow. The defaults are
those of Gal et al. 2017 and their code (github.com/Riashat/Deep-Bayesian-Active-Learning): rate 0.5 before the last
layer, 100 samples. That code draws a mask for each image, and also masks the outputs of convolutions (rate 0.25).
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from sslpl.query.head import linear_head
from sslpl.types import QueryContext

CHUNK = 2**22  # numbers held in memory at a time for the sampled networks


def measure_dropout(
    context: QueryContext, rng: Generator, samples: int, dropout: float, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Applies a measure to the log-probabilities of sampled networks for the unlabeled images; returns [U]."""
    head, embedding = linear_head(context.backbone), context.predictions.embedding
    return over_masks(head, embedding, dropout_masks(samples, embedding, dropout, rng), measure)


def over_masks(head: nn.Linear, embedding: Tensor, masks: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a measure to the log-probabilities of embeddings [N, D] under each mask, in blocks; returns [N]."""
    block_size = max(1, CHUNK // (len(masks) * head.out_features))
    parts = torch.split(embedding, block_size)
    return torch.cat([measure(sampled_logits(head, part, masks).double().log_softmax(dim=2)) for part in parts])


def dropout_masks(samples: int, embedding: Tensor, dropout: float, rng: Generator) -> Tensor:
    """Draws inverted dropout masks [samples, D]: 0 with probability `dropout`, otherwise 1 / (1 - dropout)."""
    keep = torch.rand(samples, embedding.shape[1], generator=rng) >= dropout
    return (keep / (1 - dropout)).to(embedding)


@torch.no_grad()
def sampled_logits(head: nn.Linear, embedding: Tensor, masks: Tensor) -> Tensor:
    """Computes logits [N, samples, classes] of embeddings [N, D] under each mask [samples, D]."""
    return torch.stack([linear(embedding, head.weight * mask, head.bias) for mask in masks], dim=1)
