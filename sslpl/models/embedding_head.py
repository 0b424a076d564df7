"""The networks of a run whose frozen backbone embeds each image once: the whole, and the head that is trained."""

from typing import Any

import torch
from torch import Tensor, nn

from sslpl.models.starting_weights import LinearProbe
from sslpl.types import Features

Weights = dict[str, Tensor]


class EmbeddingProbe(LinearProbe):
    """A frozen backbone whose only stage, which the loss prediction module reads, is its embedding."""

    def __init__(self, network: Any, width: int) -> None:
        super().__init__(network)
        self.channels = (width,)

    def forward(self, images: Tensor) -> Features:
        """Computes the features of normalized images [B, C, H, W]."""
        logits, _, embedding = super().forward(images)
        return Features(logits, (embedding[:, :, None, None],), embedding)


class EmbeddingHead(nn.Module):
    """The dropout and head of a frozen backbone, for embeddings that were computed before."""

    def __init__(self, probe: LinearProbe, width: int) -> None:
        super().__init__()
        self.channels = (width,)
        self.dropout: nn.Module = probe.network.dropout
        self.head = probe.head

    def forward(self, embeddings: Tensor) -> Features:
        """Computes the features of embeddings [B, D, 1, 1]."""
        embedding = embeddings.flatten(1)
        return Features(self.head(self.dropout(embedding)), (embedding[:, :, None, None],), embedding)


@torch.inference_mode()
def embedding_width(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Returns the number of dimensions of a network's embeddings of images [C, H, W]."""
    images, was_training = torch.zeros(1, *shape, device=next(network.parameters()).device), network.training
    width = network.eval().forward(images).embedding.shape[1]  # not compiled for a single image
    network.train(was_training)
    return int(width)


def whole_weights(probe: LinearProbe, head: nn.Module) -> Weights:
    """Returns the weights of the whole network, under the names of `LinearProbe`, with those of a trained head."""
    frozen = {name: value for name, value in probe.state_dict().items() if not name.startswith("network.head.")}
    return frozen | {f"network.{name}": value for name, value in head.state_dict().items()}
