"""Embeds images by a frozen network, without augmentation, and identifies the embeddings by what they depend on."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslpl.data.image_fingerprints import images_fingerprint
from sslpl.data.images import TensorImages
from sslpl.models.embedding_head import EmbeddingProbe
from sslpl.models.frozen import FrozenBackbone, inference_batch_size
from sslpl.types import Images, UserError

VERSION = 1  # part of each key: a change of how embeddings are computed needs another
Floats = NDArray[np.float32]


class Embedder(NamedTuple):
    """A frozen network on its device, with everything else that its embeddings depend on but the images."""

    network: EmbeddingProbe
    normalize: Callable[[Tensor], Tensor]  # normalizes images, [B, C, H, W] uint8 -> float32
    normalization: str  # describes `normalize`
    architecture: str  # describes the network, whose weights alone do not identify it
    device: torch.device
    bfloat16: bool

    @property
    def width(self) -> int:
        """The number of dimensions of an embedding."""
        return int(self.network.channels[0])


def embedding_key(embedder: Embedder, images: Images) -> str:
    """Hashes network, preprocessing, precision and images to 32 hexadecimal digits; where they lie does not count."""
    settings = (VERSION, embedder.normalization, embedder.architecture, embedder.bfloat16)
    parts = (repr(settings), weights_digest(embedder.network), images_fingerprint(images))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def weights_digest(network: nn.Module) -> str:
    """Hashes the weights of a frozen backbone without its head to 64 hexadecimal digits."""
    content = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith("network.head."):
            content.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()


def embedding_batches(embedder: Embedder, images: Images, first: int = 0) -> Iterator[Floats]:
    """Yields the embeddings [B, D] of the images from position `first` on, in batches that suit the device.

    UserError for an embedding that is not finite.
    """
    frozen = FrozenBackbone(embedder.network, embedder.bfloat16)
    size = inference_batch_size(embedder.device, *images.shape[1:])
    source = images if isinstance(images, TensorImages) else images.to(embedder.device)
    for batch in source.batches(torch.split(torch.arange(first, len(images)), size)):
        rows = embed_batch(embedder, frozen, batch)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise UserError(f"backbone: its embedding of image {first + int(np.argmin(finite))} is not finite")
        yield rows
        first += len(rows)


@torch.inference_mode()
def embed_batch(embedder: Embedder, frozen: FrozenBackbone, images: Tensor) -> Floats:
    """Returns the embeddings [B, D] of a batch of images [B, C, H, W] uint8, on the CPU."""
    embedding: Floats = frozen(embedder.normalize(images.to(embedder.device))).embedding.float().cpu().numpy()
    return embedding
