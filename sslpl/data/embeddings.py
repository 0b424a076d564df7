"""Embeddings as a dataset: one vector per example, from any model of images, text, audio or tables."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslpl.data.augmentation import Augmentation, WeakDraws
from sslpl.data.embedding_arrays import (
    check_arrays,
    checked_chunks,
    class_names,
    embeddings_fingerprint,
    mean_and_std,
    read_arrays,
)
from sslpl.data.images import to_device
from sslpl.types import Dataset

Scaling = Literal["standardize", "normalize", "none"]
SCALED_ROWS = 4096  # vectors that are scaled in one step


class Affine(NamedTuple):
    """An affine map of each dimension: (x - mean) * factor."""

    mean: Tensor  # [D]
    factor: Tensor  # [D]


class Embeddings:
    """N vectors of D dimensions, in memory or mapped from a file; an implementation of `Images` of shape (D, 1, 1)."""

    def __init__(
        self, rows: Tensor, affine: Affine | None, unit_length: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.rows, self.affine, self.unit_length, self.device = rows, affine, unit_length, torch.device(device)
        self.shape: tuple[int, int, int] = (rows.shape[1], 1, 1)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """The size of the vectors in bytes."""
        return self.rows.numel() * self.rows.element_size()

    def to(self, device: torch.device | str) -> "Embeddings":
        """Returns the same vectors, delivered to another device."""
        affine = None if self.affine is None else Affine(*(values.to(device) for values in self.affine))
        return Embeddings(self.rows, affine, self.unit_length, device)

    def held_on_device(self) -> "Embeddings":
        """Returns the same vectors, held in the memory of their device."""
        return Embeddings(self.rows.to(self.device), self.affine, self.unit_length, self.device)

    def subset(self, index: Tensor) -> "Embeddings":
        """Returns the vectors at the positions `index`, in memory."""
        return Embeddings(self.rows[index], self.affine, self.unit_length, self.device)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the scaled vectors of each index tensor, [B, D, 1, 1] float32."""
        for index in indices:
            rows = self.rows.index_select(0, to_device(index, self.rows.device)).to(self.device).float()
            yield self.scaled(rows)[:, :, None, None]

    def scaled(self, rows: Tensor) -> Tensor:
        """Scales vectors [B, D]."""
        if self.affine is not None:
            rows = (rows - self.affine.mean) * self.affine.factor
        if self.unit_length:
            rows = torch.nn.functional.normalize(rows, dim=1) * rows.shape[1] ** 0.5
        return rows


class NoAugmentation(Augmentation):
    """The augmentation of embeddings: none. They come scaled from the dataset and have no strong views."""

    def __init__(self) -> None:
        self.flip, self.padding, self.cutout = False, 0, 0

    def draw_weak(self, n: int, generator: torch.Generator) -> WeakDraws:
        """Returns empty draws: nothing is random."""
        del generator
        return WeakDraws(torch.empty(n, 0), torch.empty(n, 0))

    def normalize(self, images: Tensor) -> Tensor:
        """Returns the embeddings, [B, D, 1, 1] float32."""
        return images

    def weak(self, images: Tensor, draws: WeakDraws) -> Tensor:
        """Returns the embeddings, [B, D, 1, 1] float32."""
        del draws
        return images


def embeddings(file: str | None = None, scaling: Scaling = "normalize", fingerprint: str | None = None) -> Dataset:
    """Loads embeddings from an .npz file, a folder of .npy files (mapped, not read) or a .parquet file.

    Arrays: train [N, D], train_labels [N] (-1 if unknown), test [M, D], test_labels [M], and optionally class_names [C]
    and paths [N], the names of the rows that annotators see. A parquet file has the columns embedding, label, split
    (train or test) and optionally path instead. `normalize` subtracts the mean of the pool and gives each vector
    the length sqrt(D); `standardize` gives each dimension mean 0 and standard deviation 1 over the pool. UserError for
    anything else.
    """
    del fingerprint  # compared with the file when the config was resolved
    arrays = read_arrays(file)
    check_arrays(arrays, file)
    mean, std = mean_and_std(checked_chunks(arrays["train"], file, "train"))
    for _ in checked_chunks(arrays["test"], file, "test"):
        pass
    factor = 1 / std if scaling == "standardize" else torch.ones_like(std)
    affine = None if scaling == "none" else Affine(mean.float(), factor.float())
    train, test = (scaled_embeddings(arrays[part], affine, scaling == "normalize") for part in ("train", "test"))
    labels = [torch.from_numpy(np.asarray(arrays[f"{part}_labels"]).astype(np.int64)) for part in ("train", "test")]
    names = class_names(arrays, labels, file)
    paths = tuple(str(path) for path in arrays.get("paths", ())) or tuple(f"{row:06d}" for row in range(len(train)))
    return Dataset(train, labels[0], test, labels[1], names, (), (), flip=False, cutout=0, padding=0, paths=paths)


def scaled_embeddings(array: NDArray[Any], affine: Affine | None, unit_length: bool) -> Embeddings:
    """Returns vectors: scaled now, in place, if they are float32 in memory, otherwise whenever they are read."""
    vectors = Embeddings(torch.from_numpy(array), affine, unit_length)
    if array.dtype != np.float32 or not array.flags.writeable or isinstance(array, np.memmap):
        return vectors
    for rows in torch.split(vectors.rows, SCALED_ROWS):
        rows.copy_(vectors.scaled(rows))
    return Embeddings(vectors.rows, None, unit_length=False)


embeddings.fingerprint = embeddings_fingerprint  # type: ignore[attr-defined]  # part of a run's id
embeddings.has_images = False  # type: ignore[attr-defined]  # nothing that needs images or augmented views applies
