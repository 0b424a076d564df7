"""The projection head of contrastive methods."""

from torch import Tensor, nn
from torch.nn.functional import normalize


class Projection(nn.Module):
    """Projects embeddings [N, D] to unit vectors [N, P] by a hidden layer of ReLU units (CoMatch, SimMatch)."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimensions))

    def forward(self, embedding: Tensor) -> Tensor:
        """Returns the projected embeddings."""
        return normalize(self.layers(embedding).float(), dim=1)
