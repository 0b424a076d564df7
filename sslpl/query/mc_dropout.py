"""Monte-Carlo dropout at query time: a mask of the embedding makes a sampled network (Gal and Ghahramani 2016).

Dropout acts before the head alone and batch norms stay as they are, so no image passes the network again. A mask holds
for all images: each sample is one network, as BatchBALD requires, and as the other scorers allow. The defaults are
those of Gal et al. 2017 and their code: rate 0.5 before the last layer, 100 samples. Their code draws a mask for each
image, and masks the outputs of convolutions too (rate 0.25).
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from sslpl.types import QueryContext, UserError

CHUNK = 2**22  # numbers that are held at once for the sampled networks


def measure_dropout(
    context: QueryContext, rng: Generator, samples: int, dropout: float, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """A measure [U] of the unlabeled images over the log-probabilities of sampled networks."""
    head, embedding = linear_head(context.backbone), context.predictions.embedding
    return over_masks(head, embedding, dropout_masks(samples, embedding, dropout, rng), measure)


def over_masks(head: nn.Linear, embedding: Tensor, masks: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """A measure [N] of embeddings [N, D] over the log-probabilities under each mask, some images at a time."""
    at_once = max(1, CHUNK // (len(masks) * head.out_features))
    parts = torch.split(embedding, at_once)
    return torch.cat([measure(sampled_logits(head, part, masks).double().log_softmax(dim=2)) for part in parts])


def dropout_masks(samples: int, embedding: Tensor, dropout: float, rng: Generator) -> Tensor:
    """Inverted dropout masks [samples, D] for embeddings: 0 with probability `dropout`, otherwise 1 / (1 - dropout)."""
    keep = torch.rand(samples, embedding.shape[1], generator=rng) >= dropout
    return (keep / (1 - dropout)).to(embedding)


@torch.no_grad()
def sampled_logits(head: nn.Linear, embedding: Tensor, masks: Tensor) -> Tensor:
    """Logits [N, samples, classes] of embeddings [N, D] under each mask [samples, D]."""
    return torch.stack([linear(embedding, head.weight * mask, head.bias) for mask in masks], dim=1)


def linear_head(backbone: nn.Module) -> nn.Linear:
    """The last layer of a backbone; UserError if it is not a linear one named `head`."""
    head = getattr(backbone, "head", None)
    if not isinstance(head, nn.Linear):
        raise UserError("Monte-Carlo dropout needs a backbone whose last layer is an nn.Linear named `head`")
    return head
