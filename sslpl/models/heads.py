"""Small networks for embeddings: a linear classifier, and one with a hidden layer."""

import torch
from torch import Tensor, nn

from sslpl.types import Count, Features, ShareBelowOne


class Head(nn.Module):
    """A classifier of vectors: an optional hidden layer, dropout, and a linear layer.

    Its one stage, which the loss prediction module reads, and its embedding are the hidden layer or the input.
    """

    def __init__(self, dimensions: int, width: int | None, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.hidden = None if width is None else nn.Linear(dimensions, width)
        self.channels = (width or dimensions,)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.channels[0], num_classes)

    def forward(self, vectors: Tensor) -> Features:
        """Computes the features of vectors, or of images that are flattened, [B, C, H, W] with D = C H W."""
        embedding = vectors.flatten(1)
        if self.hidden is not None:
            embedding = torch.relu(self.hidden(embedding))
        return Features(self.head(self.dropout(embedding)), (embedding[:, :, None, None],), embedding)


def linear(*, num_classes: int, in_channels: int, image_size: int, dropout: ShareBelowOne = 0.0) -> Head:
    """Builds a linear classifier (softmax regression) of embeddings or pixels."""
    return Head(in_channels * image_size**2, None, num_classes, dropout)


def mlp(
    *, num_classes: int, in_channels: int, image_size: int, width: Count = 256, dropout: ShareBelowOne = 0.0
) -> Head:
    """Builds a classifier of embeddings or pixels with one hidden layer of ReLU units."""
    return Head(in_channels * image_size**2, width, num_classes, dropout)


linear.accepts_embeddings = True  # type: ignore[attr-defined]
mlp.accepts_embeddings = True  # type: ignore[attr-defined]
