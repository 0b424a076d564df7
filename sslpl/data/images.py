"""Sets of images: held on the device as one tensor, or streamed to it."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from sslpl.memory import free_memory
from sslpl.types import Images

Reader = Callable[[int], Tensor]  # position -> [C, H, W] uint8
READ_AHEAD_BYTES = 2**28  # bytes of images that are read ahead; the next batch always is
GPU_SHARE = 0.5  # of a GPU's free memory that a set of images may take
HELD, HOST_SHARE = 2**31, 0.25  # bytes that a set read from files may take on a CPU, and the share of what is available
IMAGES_PER_READ = 8  # images that a thread reads at once


def to_device(index: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device; a copy from the CPU to a GPU is not waited for."""
    if device.type == "cuda" and index.device.type == "cpu":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


class TensorImages:
    """Images held as one uint8 tensor [N, C, H, W], gathered on its device."""

    def __init__(self, data: Tensor) -> None:
        channels, height, width = data.shape[1:]
        self.data = data
        self.shape: tuple[int, int, int] = (channels, height, width)

    def __len__(self) -> int:
        return len(self.data)

    def to(self, device: torch.device | str) -> "TensorImages":
        """The same images on another device."""
        return TensorImages(self.data.to(device))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each index tensor in turn, [B, C, H, W] uint8."""
        for index in indices:
            yield self.data.index_select(0, to_device(index, self.data.device))


class StreamedImages:
    """N images that `read` brings one by one, from disk or from the host's memory; see `Images`.

    They are read on threads, since Pillow and copies let others run meanwhile: none is started anew for an epoch as
    processes would be, and a process that has used a GPU is not forked.
    """

    def __init__(
        self,
        read: Reader,
        count: int,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        workers: int | None = None,  # threads; None: as many as there are cores
    ) -> None:
        self.read, self.count, self.shape = read, count, shape
        self.device, self.workers = torch.device(device), workers

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device | str) -> "StreamedImages":
        """The same images, delivered to another device."""
        return StreamedImages(self.read, self.count, self.shape, device, self.workers)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each index tensor in turn, [B, C, H, W] uint8; the next ones are read meanwhile."""
        threads = ThreadPoolExecutor(self.workers or usable_cores())
        begun: deque[tuple[Tensor, list[Future[None]]]] = deque()
        try:
            for index in indices:
                begun.append(self._begin(threads, index))
                while len(begun) > 1 and sum(images.nbytes for images, _ in begun) > READ_AHEAD_BYTES:
                    yield self._finished(*begun.popleft())
            while begun:
                yield self._finished(*begun.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _begin(self, threads: ThreadPoolExecutor, index: Tensor) -> tuple[Tensor, list[Future[None]]]:
        images = torch.empty(len(index), *self.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        parts = zip(torch.split(index.cpu(), IMAGES_PER_READ), torch.split(images, IMAGES_PER_READ), strict=True)
        return images, [threads.submit(self._fill, rows, part.tolist()) for part, rows in parts if len(part)]

    def _fill(self, rows: Tensor, positions: list[int]) -> None:
        for row, position in zip(rows.numpy(), positions, strict=True):
            row[:] = self.read(position).numpy()  # by numpy: torch would start threads of its own in each thread

    def _finished(self, images: Tensor, reading: list[Future[None]]) -> Tensor:
        for part in reading:
            part.result()
        return images.to(self.device, non_blocking=True)


def usable_cores() -> int:
    """How many cores this process may use, at most 32."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def place_images(images: Images, device: torch.device, limit: int | None = None) -> Images:
    """Images on the device, or streamed to it where they would take more than the limit in bytes.

    Without a limit there is half of a GPU's free memory; on a CPU images that come from files may take 2 GiB and a
    quarter of the available memory. What is too much for a GPU alone is streamed from the host's memory.
    """
    held = isinstance(images, TensorImages)
    if fits(images, device, limit) or (held and device.type == "cpu"):
        return images.to(device) if held else load_images(images, device)
    if device.type != "cpu" and fits(images, torch.device("cpu"), limit):
        images = images if held else load_images(images, torch.device("cpu"))
    if isinstance(images, TensorImages):
        return StreamedImages(images.data.__getitem__, len(images), images.shape, device)
    print_placement(images, "stream from their files", "; runtime.held_gib says what is held in memory instead")
    return images.to(device)


def fits(images: Images, device: torch.device, limit: int | None) -> bool:
    """Whether a set of images is to be held on a device."""
    if limit is None and device.type == "cuda":
        limit = int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    elif limit is None:
        limit = int(min(HELD, HOST_SHARE * free_memory(torch.device("cpu"))))
    return num_bytes(images) <= limit


def num_bytes(images: Images) -> int:
    """Bytes that the images take."""
    return len(images) * prod(images.shape)


def load_images(images: Images, device: torch.device) -> TensorImages:
    """The images as one tensor on the device."""
    print_placement(images, f"are read into the memory of the {'CPU' if device.type == 'cpu' else 'GPU'}")
    data = torch.empty(len(images), *images.shape, dtype=torch.uint8, device=device)
    batches = torch.split(torch.arange(len(images)), 256)
    for index, batch in zip(batches, images.to(device).batches(batches), strict=True):
        data[int(index[0]) : int(index[-1]) + 1] = batch
    return TensorImages(data)


def print_placement(images: Images, what: str, more: str = "") -> None:
    """Says on standard error what becomes of a set of images."""
    shape = "x".join(map(str, images.shape))
    mib = num_bytes(images) / 2**20
    taken = f"{mib / 2**10:.1f} GiB" if mib >= 2**10 else f"{mib:,.1f} MiB"
    line = f"{len(images):,} images of {shape} {what} ({taken}{more})"
    print(f"sslpl: {line}", file=sys.stderr, flush=True)
