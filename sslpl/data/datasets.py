"""Published datasets of small images, held in memory as uint8, and scikit-learn's digits, which need no files."""

import gzip
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslpl.data.download import DatasetSource, damaged_file_error, locate_files
from sslpl.data.images import TensorImages
from sslpl.types import CountOrZero, Dataset

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGITS_STATISTICS = (0.3058,), (0.3761,)  # mean and standard deviation of the 1,437 images of the pool
FASHION_STATISTICS = (0.5,), (0.5,)
CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100_STATISTICS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SVHN_STATISTICS = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
Bytes = NDArray[np.uint8]
Part = tuple[Bytes, Tensor]  # images [N, C, H, W] uint8, labels [N] int64
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


FASHION_MNIST = DatasetSource(
    "FashionMNIST",
    "FashionMNIST/raw",
    tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
    "https://github.com/zalandoresearch/fashion-mnist, "
    "or 'apt install dataset-fashion-mnist' and dataset.root=/usr/share/datasets/fashion-mnist",
)
UNPACKED = "https://www.cs.toronto.edu/~kriz/{}, unpacked"
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
CIFAR10 = DatasetSource("CIFAR10", "cifar-10-batches-py", CIFAR10_FILES, UNPACKED.format("cifar-10-python.tar.gz"))
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
SVHN = DatasetSource("SVHN", "", SVHN_FILES, "http://ufldl.stanford.edu/housenumbers", ("train", "test"))
CIFAR100_FILES = ("train", "test", "meta")
CIFAR100 = DatasetSource("CIFAR100", "cifar-100-python", CIFAR100_FILES, UNPACKED.format("cifar-100-python.tar.gz"))


def digits(root: str = "data", flip: bool = False, cutout: CountOrZero | None = None) -> Dataset:
    """Loads scikit-learn's digits: gray, 8x8 pixels, 1,437 for the pool and 360 to test, a fixed stratified split."""
    del root  # they come with scikit-learn; every dataset takes the key
    from sklearn.datasets import load_digits  # imported late: it takes a second

    values, labels = load_digits(return_X_y=True)
    images = np.rint(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    # Every fifth image in the order of classes: stratified without a random draw that may change between versions.
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    pool_part, test_part = ((images[rows], torch.from_numpy(labels[rows])) for rows in (~test, test))
    return _dataset(pool_part, test_part, "0123456789", DIGITS_STATISTICS, flip, cutout)


def fashion_mnist(
    root: str = "data", flip: bool = True, cutout: CountOrZero | None = None, download: bool = True
) -> Dataset:
    """Loads Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 gray images of 28x28 pixels, 10 classes."""
    paths = locate_files(FASHION_MNIST, root, download)

    def read_part(images_path: Path, labels_path: Path) -> Part:
        with damaged_file_error(FASHION_MNIST, root, images_path):
            images = _read_idx(images_path, (28, 28))
        with damaged_file_error(FASHION_MNIST, root, labels_path):
            return images[:, None], _validated_labels(_read_idx(labels_path, ()), len(images), len(FASHION_CLASSES))

    return _dataset(read_part(*paths[:2]), read_part(*paths[2:]), FASHION_CLASSES, FASHION_STATISTICS, flip, cutout)


def cifar10(root: str = "data", flip: bool = True, cutout: CountOrZero | None = None, download: bool = True) -> Dataset:
    """Loads CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 color images of 32x32 pixels, 10 classes."""
    parts = _cifar(CIFAR10, root, download, "labels", "label_names")
    return _dataset(*parts, CIFAR10_STATISTICS, flip, cutout)


def cifar100(
    root: str = "data", flip: bool = True, cutout: CountOrZero | None = None, download: bool = True
) -> Dataset:
    """Loads CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 color images of 32x32 pixels, 100 (fine) classes."""
    parts = _cifar(CIFAR100, root, download, "fine_labels", "fine_label_names")
    return _dataset(*parts, CIFAR100_STATISTICS, flip, cutout)


def svhn(root: str = "data", flip: bool = False, cutout: CountOrZero | None = None, download: bool = True) -> Dataset:
    """Loads SVHN (Netzer et al. 2011): 73,257 and 26,032 color images of 32x32 pixels, digits of house numbers."""

    def read_part(path: Path) -> Part:
        with damaged_file_error(SVHN, root, path):
            from scipy.io import loadmat  # imported late: it takes a while

            content = loadmat(path, variable_names=("X", "y"))
            images, digits = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)), content["y"][:, 0]
            if images.dtype != np.uint8 or images.shape[1:] != (3, 32, 32):
                raise ValueError(f"its images are {images.dtype} {images.shape[1:]}, not uint8 (3, 32, 32)")
            # The files hold 1 to 10, where 10 is the digit 0.
            return images, (_validated_labels(digits.astype(np.int64) - 1, len(images), 10) + 1) % 10

    train, test = map(read_part, locate_files(SVHN, root, download))
    return _dataset(train, test, "0123456789", SVHN_STATISTICS, flip, cutout)


def _dataset(
    train: Part, test: Part, names: Sequence[str], statistics: Statistics, flip: bool, cutout: int | None
) -> Dataset:
    side = train[0].shape[-1]
    if cutout is None:  # the published 16 pixels would hide most of a smaller image
        cutout = 16 if side >= 28 else side // 2
    pool, held_out = (TensorImages(torch.from_numpy(images)) for images, _ in (train, test))
    padding = side // 8
    return Dataset(pool, train[1], held_out, test[1], tuple(names), *statistics, flip, cutout, padding)


def _cifar(
    source: DatasetSource, root: str, download: bool, key: str, names_key: str
) -> tuple[Part, Part, Sequence[str]]:
    *train_paths, test_path, meta_path = locate_files(source, root, download)
    with damaged_file_error(source, root, meta_path):
        names = [str(name) for name in _unpickle(meta_path)[names_key]]

    def read_part(path: Path) -> Part:
        with damaged_file_error(source, root, path):
            batch = _unpickle(path)
            # A row is an image: 1,024 red values, then green, then blue, each in row-major order.
            images = np.asarray(batch["data"]).reshape(-1, 3, 32, 32)
            if images.dtype != np.uint8:
                raise ValueError(f"its pixels are {images.dtype}, not uint8")
            return images, _validated_labels(batch[key], len(images), len(names))

    images, labels = zip(*map(read_part, train_paths), strict=True)
    return (np.concatenate(images), torch.cat(labels)), read_part(test_path), names


def _validated_labels(values: Any, images: int, classes: int) -> Tensor:
    labels = np.asarray(values)
    if not images or labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise ValueError(f"expected an integer label for each of {images} images")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()} where 0 to {classes - 1} are allowed")
    return torch.from_numpy(labels.astype(np.int64))


def _read_idx(path: Path, shape: tuple[int, ...]) -> Bytes:
    """Reads an idx file of bytes as an array [N, *shape] (layout: yann.lecun.com/exdb/mnist)."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = 1 + len(shape)
    magic, count, *sizes = struct.unpack_from(f">{1 + dimensions}I", content)
    if magic != 0x800 + dimensions or tuple(sizes) != shape:
        raise ValueError(f"not an idx file of bytes with {dimensions} dimensions, the last ones {shape}")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return values.copy().reshape(count, *shape)  # a copy, because torch needs writable memory


# The functions that a pickled array may call, by name alone because numpy has moved them between its modules.
PICKLED_CALLS = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(1).__reduce__()[0],
    "_frombuffer": np.empty(1).__reduce_ex__(5)[0],
    "scalar": np.int64(0).__reduce__()[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers and arrays only, so that a downloaded pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":  # how Python 3 pickles the bytes of an array in protocol 2
            return str.encode
        if module.split(".")[0] == "numpy" and name in PICKLED_CALLS:
            return PICKLED_CALLS[name]
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which no image file needs")


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()  # pickled by Python 2, whose strings are bytes
