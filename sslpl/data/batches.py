"""Which images make a batch, and how batches reach the device."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from sslpl.data.augmentation import Augmentation, Draws, WeakDraws, take_draws
from sslpl.distributed.collectives import offsets
from sslpl.distributed.world import World
from sslpl.seeds import shuffled
from sslpl.types import Images

VIEW_BYTES = 2**29  # the most that views augmented at once may take on a GPU
CPU_VIEW_BYTES = 2**27  # and on a CPU, where 1,536 images of 32x32 are far less


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Batches in order; a last batch of one image joins the one before, for batch norm cannot train on it."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2:] = [order[-len(batches[-2]) - 1 :]]
    return batches


def epoch_batches(index: Tensor, pool_size: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """One shuffled pass over `index`."""
    return split_batches(shuffled(index, pool_size, generator), batch_size)


def shard_batches(world: World, batches: Sequence[Tensor], draws: WeakDraws) -> tuple[list[Tensor], WeakDraws]:
    """What this process holds of each batch of an epoch, and the draws for these images."""
    if world.size == 1:
        return list(batches), draws
    places = [world.paired_shard(len(batch)) for batch in batches]
    at = [place + start for place, start in zip(places, offsets([len(batch) for batch in batches]), strict=True)]
    return [batch[place] for batch, place in zip(batches, places, strict=True)], take_draws(draws, torch.cat(at))


def unlabeled_batch_size(unlabeled: int, labeled: int, batch_size: int, limit: int = 1536) -> int:
    """The even size that makes a pass over the labeled set one over the unlabeled set too (SSLPM's code)."""
    return min(unlabeled // (labeled // batch_size + 1) // 2 * 2, limit)


def group_batches(batches: Sequence[Tensor], device: torch.device, shape: tuple[int, int, int]) -> list[list[Tensor]]:
    """Consecutive batches that are fetched and augmented at once: one on a CPU, as many as fit on a GPU.

    A GPU is launched to, not waited for: one kernel for many batches instead of many for each.
    """
    channels, height, width = shape
    limit = VIEW_BYTES // (4 * channels * height * width) if device.type == "cuda" else 0
    groups: list[list[Tensor]] = []
    images = 0
    for batch in batches:
        if not groups or images + len(batch) > limit:
            groups.append([])
            images = 0
        groups[-1].append(batch)
        images += len(batch)
    return groups


def augment_in_parts(augment: Callable[[Tensor, Draws], Tensor], images: Tensor, draws: Draws) -> Iterator[Tensor]:
    """The views of images [B, C, H, W] uint8, as many at a time as their floats may take; at least one part.

    What a network without gradient is to see of large images need not be in memory all at once.
    """
    most = VIEW_BYTES if images.is_cuda else CPU_VIEW_BYTES
    size = max(1, most // (4 * images[0:1].numel())) if len(images) else 1
    for start in range(0, max(1, len(images)), size):
        span = slice(start, start + size)
        yield augment(images[span], take_draws(draws, span))


def fetch_groups(images: Images, groups: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The images of each group in turn, [B, C, H, W] uint8."""
    return images.batches([torch.cat(list(group)) for group in groups])


def weak_views(
    images: Images,
    augmentation: Augmentation,
    device: torch.device,
    batches: Sequence[Tensor],
    draws: WeakDraws,
    first: int,
) -> Iterator[Tensor]:
    """The weakly augmented images of each batch from `first` on; `draws` are those of the whole epoch."""
    groups = group_batches(batches[first:], device, images.shape)
    start = sum(len(batch) for batch in batches[:first])
    for group, fetch in zip(groups, fetch_groups(images, groups), strict=True):
        views = augmentation.weak(fetch, take_draws(draws, slice(start, start + len(fetch))))
        yield from torch.split(views, [len(batch) for batch in group])
        start += len(fetch)
