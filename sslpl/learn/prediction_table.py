"""Tables that arrive batch by batch: in memory, or in a file where they would take too much of it."""

import mmap
from tempfile import TemporaryFile
from typing import IO

import torch
from torch import Tensor

MAPPED_BYTES = 2**28  # bytes: a larger table on the CPU lies in a file (131,072 embeddings of 512 dimensions are not)


class PredictionTable:
    """So many rows, appended in batches on one device.

    A table of more than MAPPED bytes on the CPU goes to a file without a name in the system's temporary folder
    (TMPDIR), which ends with the process, however that ends. Its pages take memory only while there is room.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.filled = rows, 0
        self.shape, self.dtype = torch.Size(), torch.float32
        self.memory: Tensor | None = None
        self.file: IO[bytes] | None = None

    def append(self, batch: Tensor) -> None:
        """Adds rows [B, ...]; OSError where the disk is full."""
        if self.filled == 0:
            self.begin(batch)
        if self.file is not None:
            self.file.write(batch.contiguous().view(torch.uint8).numpy().data)
        elif self.memory is not None:
            self.memory[self.filled : self.filled + len(batch)] = batch
        self.filled += len(batch)

    def begin(self, batch: Tensor) -> None:
        """Makes room for rows like those of the first batch."""
        self.shape, self.dtype = batch.shape[1:], batch.dtype
        if batch.device.type == "cpu" and self.rows * self.shape.numel() * batch.element_size() > MAPPED_BYTES:
            self.file = TemporaryFile(prefix="sslpl-")  # noqa: SIM115  # closed with its mapping
        else:
            with torch.inference_mode(False):  # a network may learn from what it holds
                self.memory = batch.new_empty(self.rows, *self.shape)

    def whole(self) -> Tensor:
        """All rows [N, ...], at least one, once they are there."""
        if self.file is not None:
            self.file.flush()
            mapped = mmap.mmap(self.file.fileno(), 0)
            self.memory = torch.frombuffer(mapped, dtype=self.dtype).view(self.rows, *self.shape)
            self.file.close()
            self.file = None
        assert self.memory is not None
        return self.memory
