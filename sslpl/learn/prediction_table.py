"""Tables filled batch by batch, in memory or, if they are large, in a memory-mapped file."""

import mmap
from tempfile import TemporaryFile
from typing import IO

import torch
from torch import Tensor

MAPPED_BYTES = 2**28  # a larger table on the CPU is a mapped file; 131,072 embeddings of 512 dimensions are not larger


class PredictionTable:
    """A table with a fixed number of rows, appended in batches on one device.

    On the CPU, a table of more than MAPPED_BYTES is an unnamed file in the system's temporary folder (TMPDIR), which
    disappears with the process. Its pages occupy memory only while there is room.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.filled = rows, 0
        self.shape, self.dtype = torch.Size(), torch.float32
        self.memory: Tensor | None = None
        self.file: IO[bytes] | None = None

    def append(self, batch: Tensor) -> None:
        """Appends rows [B, ...]; OSError if the disk is full."""
        if self.filled == 0:
            self.allocate(batch)
        if self.file is not None:
            self.file.write(batch.contiguous().view(torch.uint8).numpy().data)
        elif self.memory is not None:
            self.memory[self.filled : self.filled + len(batch)] = batch
        self.filled += len(batch)

    def allocate(self, batch: Tensor) -> None:
        """Allocates the table for rows like those of the first batch."""
        self.shape, self.dtype = batch.shape[1:], batch.dtype
        if batch.device.type == "cpu" and self.rows * self.shape.numel() * batch.element_size() > MAPPED_BYTES:
            self.file = TemporaryFile(prefix="sslpl-")  # noqa: SIM115  # closed when mapped
        else:
            with torch.inference_mode(False):  # so that a network can be trained on the result
                self.memory = batch.new_empty(self.rows, *self.shape)

    def whole(self) -> Tensor:
        """Returns all rows [N, ...], N >= 1, after they have been appended."""
        if self.file is not None:
            self.file.flush()
            mapped = mmap.mmap(self.file.fileno(), 0)
            self.memory = torch.frombuffer(mapped, dtype=self.dtype).view(self.rows, *self.shape)
            self.file.close()
            self.file = None
        assert self.memory is not None
        return self.memory
