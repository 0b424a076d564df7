"""Weak and strong augmentation of whole batches on the device of the images, with the same bits as Pillow.

The weak view is a horizontal flip and a padded crop. The strong view adds two of FixMatch's RandAugment
operations (Sohn et al. 2020; Cubuk et al. 2020) and a cut-out, as in SSLPM (Hwang et al. 2024). All random
numbers are drawn on the CPU: the host knows how a batch splits into operations without a device synchronization.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sslpl.data.operations import LEVELS, OPERATIONS, RandAugment, cutout, cutout_corner

# Batches of fewer elements run on one CPU thread, because waking the other threads takes longer than the kernels:
# MANY_KERNELS is the limit for crops and strong operations, FEW_KERNELS the limit for normalization.
MANY_KERNELS, FEW_KERNELS = 10**7, 10**6


class WeakDraws(NamedTuple):
    """Random numbers of the weak view, one row per image, on the CPU."""

    flip: Tensor  # [n] bool
    shift: Tensor  # [n, 2] int64 (dy, dx) in 0..2*padding, the corner of the crop in the padded image


class StrongDraws(NamedTuple):
    """Random numbers of the strong view, one row per image, on the CPU; the two operations are in order."""

    flip: Tensor  # [n] bool
    shift: Tensor  # [n, 2] int64 (dy, dx) in 0..2*padding
    operation: Tensor  # [n, 2] int64, index into OPERATIONS
    magnitude: Tensor  # [n, 2] int64 in 1..9
    negative: Tensor  # [n, 2] bool, used by the operations in SIGNED only
    applied: Tensor  # [n, 2] bool
    center: Tensor  # [n, 2] float64 (x, y) of the cut-out, in [0, width) and [0, height)


Draws = TypeVar("Draws", WeakDraws, StrongDraws)


def take_draws(draws: Draws, index: slice | Tensor) -> Draws:
    """Returns the draws of the indexed images: views for a slice, copies for an index tensor."""
    return type(draws)(*(field[index] for field in draws))


def crop_flip(images: Tensor, draws: WeakDraws | StrongDraws, padding: int) -> Tensor:
    """Flips, pads with black and crops to the original size, uint8 [B, C, H, W] -> the same shape."""
    order, start = _to_device(images.device, *_plan_crop(draws, images.shape, padding))
    with _one_thread(images, MANY_KERNELS):
        return _crop_flip(images, order, start, int(draws.flip.sum()), padding)


def _plan_crop(draws: WeakDraws | StrongDraws, shape: Sequence[int], padding: int) -> tuple[Tensor, Tensor]:
    """Returns an order with the flipped images last, and each crop's flat offset in the batch padded in that order."""
    row, plane = shape[3] + 2 * padding, (shape[2] + 2 * padding) * (shape[3] + 2 * padding)
    order = draws.flip.byte().argsort(stable=True)
    dy, dx = draws.shift.unbind(1)
    return order, _inverse(order) * (shape[1] * plane) + dy * row + dx


def _crop_flip(images: Tensor, order: Tensor, start: Tensor, flipped: int, padding: int) -> Tensor:
    count, channels, height, width = images.shape
    images, unflipped = images.index_select(0, order), count - flipped
    padded = images.new_zeros(count, channels, height + 2 * padding, width + 2 * padding)
    inner = padded[:, :, padding : padding + height, padding : padding + width]
    inner[:unflipped] = images[:unflipped]
    inner[unflipped:] = images[unflipped:].flip(3)
    # Every crop is a row of an overlapping view of the padded batch, so that a single index_select copies them all.
    row, plane = padded.shape[3], padded.shape[2] * padded.shape[3]
    windows = max(0, (count - 1) * channels * plane + 2 * padding * (row + 1) + 1)
    return padded.as_strided((windows, channels, height, width), (1, plane, row, 1)).index_select(0, start)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Sends int64 vectors from the CPU to the device in one asynchronous transfer."""
    if device.type == "cpu":
        return list(tensors)
    joined = torch.cat(tensors)
    joined = joined.pin_memory() if device.type == "cuda" else joined
    return list(joined.to(device, non_blocking=True).split_with_sizes([len(tensor) for tensor in tensors]))


@contextmanager
def _one_thread(images: Tensor, limit: int) -> Iterator[None]:
    """Restricts torch to one CPU thread for a batch of fewer elements than the limit."""
    threads = torch.get_num_threads()
    if threads == 1 or images.device.type != "cpu" or images.numel() >= limit:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Augmentation:
    """Weak, strong and no augmentation of images of one shape (C, H, W) on one device; outputs are normalized."""

    def __init__(
        self,
        shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        flip: bool,
        padding: int,
        cutout: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.channels, self.height, self.width = shape
        self.flip, self.padding, self.cutout = flip, padding, cutout
        self.operations = RandAugment(self.height, self.width, torch.device(device))
        channel_mean, channel_std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # One value per image element, because a broadcast over channels is four times slower on a CPU.
        self.scale, self.offset = (
            values.float().repeat(self.height * self.width).to(device)
            for values in (1 / (255 * channel_std), -channel_mean / channel_std)
        )

    def draw_weak(self, n: int, generator: torch.Generator) -> WeakDraws:
        """Draws the random numbers of n weak views, on the CPU."""
        flip = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        return WeakDraws(flip, torch.randint(2 * self.padding + 1, (n, 2), generator=generator))

    def draw_strong(self, n: int, generator: torch.Generator) -> StrongDraws:
        """Draws the random numbers of n strong views, on the CPU."""
        flip, shift = self.draw_weak(n, generator)
        operation = torch.randint(len(OPERATIONS), (n, 2), generator=generator)
        magnitude = torch.randint(1, LEVELS, (n, 2), generator=generator)
        negative, applied = (torch.rand(n, 2, generator=generator) < 0.5 for _ in range(2))
        side = torch.tensor([self.width, self.height], dtype=torch.float64)
        center = torch.rand(n, 2, generator=generator, dtype=torch.float64) * side
        return StrongDraws(flip, shift, operation, magnitude, negative, applied, center)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalizes, uint8 [B, C, H, W] -> float32 [B, C, H, W] in channels-last memory format."""
        self._check(images)
        with _one_thread(images, FEW_KERNELS):
            values = torch.stack(images.flatten(2).unbind(1), 2).flatten(1).float()
            torch.addcmul(self.offset, values, self.scale, out=values)
        return values.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def weak(self, images: Tensor, draws: WeakDraws) -> Tensor:
        """Flips, crops and normalizes; shapes as in `normalize`."""
        self._check(images)
        return self.normalize(crop_flip(images, draws, self.padding))

    def random_weak(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns weak views whose random numbers are drawn by the generator."""
        return self.weak(images, self.draw_weak(len(images), generator))

    def strong(self, images: Tensor, draws: StrongDraws) -> Tensor:
        """Flips, crops, applies two operations and the cut-out, and normalizes; shapes as in `normalize`."""
        self._check(images)
        return self.normalize(self.strong_uint8(images, draws))

    def strong_uint8(self, images: Tensor, draws: StrongDraws) -> Tensor:
        """Returns the strong views before normalization; the batch is sorted by operation before each of the two."""
        operation = draws.operation * draws.applied  # 0 is the identity
        setting = self.operations.setting(operation, draws.magnitude, draws.negative)
        first, second = operation.byte().argsort(stable=True, dim=0).unbind(1)
        counts = [column.bincount(minlength=len(OPERATIONS)).tolist() for column in operation.unbind(1)]
        order, start = _plan_crop(draws, images.shape, self.padding)
        corner = cutout_corner(draws.center, self.cutout).flatten()
        reorder = (_inverse(first)[second], _inverse(second))  # from the first to the second sorting, and back
        plan = (order, start[first], setting[first, 0], setting[second, 1], *reorder, corner)
        order, start, setting_1, setting_2, resort, restore, corner = _to_device(images.device, *plan)
        with _one_thread(images, MANY_KERNELS):
            result = _crop_flip(images, order, start, int(draws.flip.sum()), self.padding)
            result = self.operations.apply_(result, setting_1, counts[0]).index_select(0, resort)
            result = self.operations.apply_(result, setting_2, counts[1]).index_select(0, restore)
            return cutout(result, corner.view(-1, 2), self.cutout) if self.cutout else result

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != (self.channels, self.height, self.width):
            expected = f"uint8 [B, {self.channels}, {self.height}, {self.width}]"
            raise ValueError(f"images must be {expected}, not {images.dtype} {list(images.shape)}")
