"""A frozen backbone for inference, with batch norms folded into the convolutions."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sslpl.models.conv_norm import ConvNorm, ResidualBlock
from sslpl.types import Features

ROUND = 512  # on a GPU, batches of a frozen backbone are padded to a multiple of this


class FrozenBackbone:
    """A copy of a backbone for inference only: eval mode, batch norms folded into their convolutions.

    With `bfloat16`, convolutions and stage outputs are in bfloat16 (by autocast in a network with layers other than
    `ConvNorm`); embedding and logits are always in float32 (ours).
    """

    def __init__(self, backbone: nn.Module, bfloat16: bool) -> None:
        self.network = copy.deepcopy(backbone).eval().requires_grad_(False)
        # The fused ReLU of a folded convolution would turn NaN into 0, and hide that weights are not finite.
        folds = all(bool(values.isfinite().all()) for values in self.network.state_dict().values())
        self.autocast = bfloat16 and not (folds and foldable(self.network))
        # A head alone, for embeddings, stays in float32 as it does in every other network.
        has_pairs = any(isinstance(part, ConvNorm) for part in self.network.modules())
        self.dtype = torch.bfloat16 if bfloat16 and has_pairs and not self.autocast else torch.float32
        for convolution in fold_batch_norms(self.network) if folds else []:
            convolution.to(self.dtype).to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Features:
        """Computes the features of normalized images [B, C, H, W]."""
        images = images.to(self.dtype)
        if not images.is_cuda:
            return self._features(images)
        count = len(images)
        logits, maps, embedding = self._features(pad(images, (0, 0, 0, 0, 0, 0, 0, -count % ROUND)))
        return Features(logits[:count], tuple(stage[:count] for stage in maps), embedding[:count])

    def _features(self, images: Tensor) -> Features:
        if not self.autocast:
            return self.network(images)  # type: ignore[no-any-return]
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            logits, maps, embedding = self.network(images)
        head = getattr(self.network, "head", None)
        return Features(logits.float() if head is None else head(embedding), maps, embedding)

    def parts(self, images: Tensor) -> Iterator[Features]:
        """Yields the features of any number of images, in batches that suit the device."""
        size = inference_batch_size(images.device, *images.shape[2:])
        sizes = gpu_batch_sizes(len(images), size) if images.is_cuda else size
        yield from map(self, torch.split(images, sizes))


def foldable(network: nn.Module) -> bool:
    """True if all convolutions and linear layers but the head are in a `ConvNorm`, and can be cast to bfloat16."""
    pairs = {part for pair in network.modules() if isinstance(pair, ConvNorm) for part in pair}
    foldable_layers = pairs | {getattr(network, "head", None)}
    return all(layer in foldable_layers for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def inference_batch_size(device: torch.device, height: int, width: int) -> int:
    """Returns the batch size for inference: small on a CPU, so that feature maps stay in its cache.

    Above 64x64 pixels it is inversely proportional to the pixels of an image.
    """
    images, multiple = (4096, ROUND) if device.type == "cuda" else (256, 1)
    return max(multiple, min(images, images * 64 * 64 // (height * width) // multiple * multiple))


def gpu_batch_sizes(count: int, largest: int) -> list[int]:
    """Splits a number of images into batches of `largest`, of half of it, and so on; the last one may be smaller.

    A GPU's library searches for its fastest convolutions at every new batch size.
    """
    sizes, size = [], largest
    while count > 0:
        while size > count and size > ROUND:
            size = max(ROUND, size // 2 // ROUND * ROUND)
        sizes.append(min(size, count))
        count -= size
    return sizes or [0]


def fold_batch_norms(network: nn.Module) -> list[nn.Conv2d]:
    """Replaces the pairs of a network in eval mode by single convolutions, and returns these.

    The bias of a shortcut is added to that of the convolution whose output it is added to, once and for all.
    """
    folded = []
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ConvNorm):
                folded.append(fold_batch_norm(child))
                setattr(parent, name, folded[-1])
    for block in network.modules():
        if isinstance(block, ResidualBlock) and isinstance(block.shortcut, nn.Conv2d):
            last, shortcut = block.last, block.shortcut
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            assert shortcut.bias is not None
            last.bias.add_(shortcut.bias)
            shortcut.bias = None
    return folded


def fold_batch_norm(pair: ConvNorm) -> nn.Conv2d:
    """Merges a convolution and its batch norm in eval mode into one convolution."""
    conv, norm = pair
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm)
