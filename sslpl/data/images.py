"""Sets of images: held on the device as one tensor, or streamed to it."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslpl.types import Images

Reader = Callable[[int], Tensor]  # position -> [C, H, W] uint8


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
    """N images that `read` brings one by one, from disk or from the host's memory; see `Images`."""

    def __init__(
        self,
        read: Reader,
        count: int,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        workers: int = 0,
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
        cuda = self.device.type == "cuda"
        loader: DataLoader[Tensor] = DataLoader(
            _Readable(self.read),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=self.workers,
            collate_fn=torch.stack,
            pin_memory=cuda,
            generator=torch.Generator(),  # a loader draws a seed for its workers: not from the global state
        )
        for images in loader:
            yield images.to(self.device, non_blocking=cuda)


class _Readable(Dataset[Tensor]):
    def __init__(self, read: Reader) -> None:
        self.read = read

    def __getitem__(self, position: int) -> Tensor:
        return self.read(position)


def placed(images: Images, device: torch.device, share: float = 0.5) -> Images:
    """Images on the device, or streamed to it where they would take more than a share of its free memory."""
    if isinstance(images, TensorImages) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.data.nbytes > share * free:
            return StreamedImages(images.data.__getitem__, len(images), images.shape, device)
    return images.to(device)
