"""Sets of images that are held on the device as one tensor or streamed to it."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from sslpl.memory import free_memory
from sslpl.messages import print_notice
from sslpl.types import Images

Reader = Callable[[int], Tensor]  # position -> [C, H, W] uint8
READ_AHEAD_BYTES = 2**28  # bytes of images that are read ahead; one batch is always read ahead
GPU_SHARE = 0.5  # of a GPU's free memory that a set of images may take
HOST_BYTES, HOST_SHARE = 2**31, 0.25  # limits of a set read from files on a CPU: bytes, share of available memory
IMAGES_PER_READ = 8  # images that a thread reads in one task


def to_device(index: Tensor, device: torch.device) -> Tensor:
    """Moves a small tensor to the device; the copy from the CPU to a GPU is asynchronous."""
    if device.type == "cuda" and index.device.type == "cpu":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


class TensorImages:
    """Images held as one uint8 tensor [N, C, H, W]; batches are gathered on its device."""

    def __init__(self, data: Tensor) -> None:
        channels, height, width = data.shape[1:]
        self.data = data
        self.shape: tuple[int, int, int] = (channels, height, width)

    def __len__(self) -> int:
        return len(self.data)

    def to(self, device: torch.device | str) -> "TensorImages":
        """Returns the same images on another device."""
        return TensorImages(self.data.to(device))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each index tensor, [B, C, H, W] uint8."""
        for index in indices:
            yield self.data.index_select(0, to_device(index, self.data.device))


class StreamedImages:
    """N images that `read` loads one by one from disk or from the host's memory; an implementation of `Images`.

    They are read on threads, because Pillow and copies release the interpreter lock. Worker processes would have to be
    started for each epoch, and a process that has used a GPU must not be forked.
    """

    def __init__(
        self,
        read: Reader,
        count: int,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        workers: int | None = None,  # threads; None: one per usable core
        fingerprint: str | None = None,  # identifies the images' content, if it is known
    ) -> None:
        self.read, self.count, self.shape = read, count, shape
        self.device, self.workers, self.fingerprint = torch.device(device), workers, fingerprint

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device | str) -> "StreamedImages":
        """Returns the same images, delivered to another device."""
        return StreamedImages(self.read, self.count, self.shape, device, self.workers, self.fingerprint)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each index tensor, [B, C, H, W] uint8, and reads the next ones meanwhile."""
        threads = ThreadPoolExecutor(self.workers or usable_cores())
        pending: deque[tuple[Tensor, list[Future[None]]]] = deque()
        try:
            for index in indices:
                pending.append(self._submit(threads, index))
                while len(pending) > 1 and sum(images.nbytes for images, _ in pending) > READ_AHEAD_BYTES:
                    yield self._collect(*pending.popleft())
            while pending:
                yield self._collect(*pending.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _submit(self, threads: ThreadPoolExecutor, index: Tensor) -> tuple[Tensor, list[Future[None]]]:
        images = torch.empty(len(index), *self.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        chunks = zip(torch.split(index.cpu(), IMAGES_PER_READ), torch.split(images, IMAGES_PER_READ), strict=True)
        return images, [threads.submit(self._fill, rows, chunk.tolist()) for chunk, rows in chunks if len(chunk)]

    def _fill(self, rows: Tensor, positions: list[int]) -> None:
        for row, position in zip(rows.numpy(), positions, strict=True):
            row[:] = self.read(position).numpy()  # numpy, because torch would start more threads in each thread

    def _collect(self, images: Tensor, tasks: list[Future[None]]) -> Tensor:
        for task in tasks:
            task.result()
        return images.to(self.device, non_blocking=True)


def usable_cores() -> int:
    """Returns the number of cores that this process may use, at most 32."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def place_images(images: Images, device: torch.device, limit: int | None = None) -> Images:
    """Loads images onto the device, or streams them to it if they would take more than the limit in bytes.

    The default limit is half of the free memory on a GPU; on a CPU, for images from files, it is 2 GiB or a quarter of
    the available memory, whichever is less. Images that fit the host but not the GPU are streamed from host memory.
    """
    in_memory = isinstance(images, TensorImages)
    if fits_in_memory(images, device, limit) or (in_memory and device.type == "cpu"):
        return images.to(device) if in_memory else load_images(images, device)
    if device.type != "cpu" and fits_in_memory(images, torch.device("cpu"), limit):
        images = images if in_memory else load_images(images, torch.device("cpu"))
    if isinstance(images, TensorImages):
        return StreamedImages(images.data.__getitem__, len(images), images.shape, device)
    print_placement(images, "stream from their files", "; runtime.held_gib says what is held in memory instead")
    return images.to(device)


def fits_in_memory(images: Images, device: torch.device, limit: int | None) -> bool:
    """True if a set of images takes at most the limit in bytes, or by default the share of the device's free memory."""
    if limit is None and device.type == "cuda":
        limit = int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    elif limit is None:
        limit = int(min(HOST_BYTES, HOST_SHARE * free_memory(torch.device("cpu"))))
    return num_bytes(images) <= limit


def num_bytes(images: Images) -> int:
    """Returns the size of the images in bytes."""
    nbytes: int = getattr(images, "nbytes", len(images) * prod(images.shape))
    return nbytes


def load_images(images: Images, device: torch.device) -> TensorImages:
    """Reads the images into one tensor on the device."""
    print_placement(images, f"are read into the memory of the {'CPU' if device.type == 'cpu' else 'GPU'}")
    data = torch.empty(len(images), *images.shape, dtype=torch.uint8, device=device)
    batches = torch.split(torch.arange(len(images)), 256)
    for index, batch in zip(batches, images.to(device).batches(batches), strict=True):
        data[int(index[0]) : int(index[-1]) + 1] = batch
    return TensorImages(data)


def print_placement(images: Images, action: str, detail: str = "") -> None:
    """Prints on standard error whether a set of images is held or streamed, and its size."""
    shape = "x".join(map(str, images.shape))
    mib = num_bytes(images) / 2**20
    size = f"{mib / 2**10:.1f} GiB" if mib >= 2**10 else f"{mib:,.1f} MiB"
    line = f"{len(images):,} images of {shape} {action} ({size}{detail})"
    print_notice(line)
