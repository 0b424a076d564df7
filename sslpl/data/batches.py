"""Splits an epoch into batches, and fetches and augments them in groups that suit the device."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from sslpl.data.augmentation import Augmentation, Draws, WeakDraws, take_draws
from sslpl.distributed.collectives import offsets
from sslpl.distributed.world import World
from sslpl.seeds import shuffled
from sslpl.types import Images

VIEW_BYTES = 2**29  # maximum size of the float views that are augmented in one call on a GPU
CPU_VIEW_BYTES = 2**27  # the same on a CPU; 1,536 images of 32x32 pixels take far less


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Splits an order into batches; a last batch of one image, on which batch norm fails, joins the previous one."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2:] = [order[-len(batches[-2]) - 1 :]]
    return batches


def epoch_batches(index: Tensor, pool_size: int, batch_size: int, generator: Generator) -> list[Tensor]:
    """Returns the batches of one shuffled pass over `index`."""
    return split_batches(shuffled(index, pool_size, generator), batch_size)


def alternating_flips(index: Tensor, pool_size: int, epoch: int, generator: Generator) -> Tensor:
    """Returns which of the images `index` to flip in an epoch, bool: each in every other epoch (airbench).

    A generator seeded alike in all epochs draws which images are flipped in the even ones.
    """
    in_even_epochs = torch.rand(pool_size, generator=generator)[index] < 0.5
    return in_even_epochs ^ bool(epoch % 2)


def shard_batches(world: World, batches: Sequence[Tensor], draws: WeakDraws) -> tuple[list[Tensor], WeakDraws]:
    """Returns the shard of each batch of an epoch that belongs to this process, and the draws of its images."""
    if world.size == 1:
        return list(batches), draws
    sizes = [len(batch) for batch in batches]
    shards = [world.paired_shard(size) for size in sizes]
    positions = torch.cat([shard + start for shard, start in zip(shards, offsets(sizes), strict=True)])
    return [batch[shard] for batch, shard in zip(batches, shards, strict=True)], take_draws(draws, positions)


def unlabeled_batch_size(unlabeled: int, labeled: int, batch_size: int, limit: int = 1536) -> int:
    """Returns the even batch size for which both sets are passed in the same number of batches (SSLPM's code)."""
    return min(unlabeled // (labeled // batch_size + 1) // 2 * 2, limit)


def group_batches(batches: Sequence[Tensor], device: torch.device, shape: tuple[int, int, int]) -> list[list[Tensor]]:
    """Groups consecutive batches that are fetched and augmented in one call: one on a CPU, as many as fit on a GPU.

    On a GPU one kernel launch for many batches costs less than one for each.
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
    """Yields the views of images [B, C, H, W] uint8 in parts that respect the memory limit; at least one part.

    Without gradients the float views of a batch of large images need not be in memory together.
    """
    limit = VIEW_BYTES if images.is_cuda else CPU_VIEW_BYTES
    size = max(1, limit // (4 * images[0:1].numel())) if len(images) else 1
    for start in range(0, max(1, len(images)), size):
        part = slice(start, start + size)
        yield augment(images[part], take_draws(draws, part))


def fetch_groups(images: Images, groups: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """Yields the images of each group, [B, C, H, W] uint8."""
    return images.batches([torch.cat(list(group)) for group in groups])


def weak_views(
    images: Images,
    augmentation: Augmentation,
    device: torch.device,
    batches: Sequence[Tensor],
    draws: WeakDraws,
    first: int,
) -> Iterator[Tensor]:
    """Yields the weak views of each batch from position `first` on; `draws` are those of the whole epoch."""
    groups = group_batches(batches[first:], device, images.shape)
    start = sum(len(batch) for batch in batches[:first])
    for group, fetched in zip(groups, fetch_groups(images, groups), strict=True):
        views = augmentation.weak(fetched, take_draws(draws, slice(start, start + len(fetched))))
        yield from torch.split(views, [len(batch) for batch in group])
        start += len(fetched)
