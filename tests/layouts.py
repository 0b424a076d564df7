"""Writers of small datasets in the published layouts; each returns the values that a reader must return."""

import gzip
import pickle
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

FASHION_FILES = tuple(f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1"))


class Written(NamedTuple):
    """Images [N, C, H, W] uint8 and labels [N] of the two parts."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def random_images(rng: np.random.Generator, train: int, test: int, shape: tuple[int, ...], classes: int) -> Written:
    """Returns random pixels; every class occurs if there are enough images."""
    parts = []
    for count in (train, test):
        parts += [rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.permutation(count) % classes]
    return Written(*parts)


def python2_pickle(content: Any, protocol: int = 2) -> bytes:
    """Pickles as Python 2 did: with one string type and the old names of numpy's modules."""
    file = BytesIO()
    _Python2Pickler(file, protocol).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


class _Python2Pickler(pickle._Pickler):
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        text = value.encode("latin1") if isinstance(value, str) else value
        if not self.bin:
            self.write(pickle.STRING + repr(text.decode("latin1")).encode("ascii") + b"\n")
        elif len(text) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def cifar_rows(images: np.ndarray) -> np.ndarray:
    """Returns a row per image: all red values line by line, then green, then blue."""
    planes = [images[:, channel].reshape(len(images), 1024) for channel in range(3)]
    return np.concatenate(planes, axis=1)


def write_cifar10(root: Path, n_train: int, n_test: int, rng: np.random.Generator) -> Written:
    """Writes five batches of n_train / 5 images, a test batch and the class names, below `root`."""
    written = random_images(rng, n_train, n_test, (3, 32, 32), 10)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"training batch {i} of 5" for i in range(1, 6)]
    for number, rows in enumerate(np.array_split(np.arange(n_train), 5), start=1):
        batch = _cifar10_batch(names[number - 1], written.train_images[rows], written.train_labels[rows])
        (folder / f"data_batch_{number}").write_bytes(python2_pickle(batch))
    batch = _cifar10_batch("testing batch 1 of 1", written.test_images, written.test_labels)
    (folder / "test_batch").write_bytes(python2_pickle(batch))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"num_cases_per_batch": n_train // 5, "label_names": classes, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta, protocol=0))
    return written


def _cifar10_batch(name: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    files = [f"image_s_{i:06d}.png" for i in range(len(images))]
    return {"batch_label": name, "labels": labels.tolist(), "data": cifar_rows(images), "filenames": files}


def write_cifar100(root: Path, n_train: int, n_test: int, rng: np.random.Generator) -> Written:
    """Writes one file for each part and one with the 100 fine and 20 coarse class names, below `root`."""
    written = random_images(rng, n_train, n_test, (3, 32, 32), 100)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    parts = {"train": written[:2], "test": written[2:]}
    for name, (images, labels) in parts.items():
        content = {
            "filenames": [f"image_s_{i:06d}.png" for i in range(len(images))],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": cifar_rows(images),
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {
        "fine_label_names": [f"fine_{i}" for i in range(100)],
        "coarse_label_names": [f"coarse_{i}" for i in range(20)],
    }
    (folder / "meta").write_bytes(python2_pickle(meta))
    return written


def idx(array: np.ndarray) -> bytes:
    """Returns an idx file: two zero bytes, 8 for unsigned bytes, the number of dimensions, sizes, values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion_mnist(
    root: Path, n_train: int, n_test: int, rng: np.random.Generator, gzipped: bool = False, flat: bool = False
) -> Written:
    """Writes the four idx files in `root`/FashionMNIST/raw, or in `root` itself as in Debian's package."""
    written = random_images(rng, n_train, n_test, (1, 28, 28), 10)
    folder = root if flat else root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (
        written.train_images[:, 0],
        written.train_labels,
        written.test_images[:, 0],
        written.test_labels,
    )
    for name, array in zip(FASHION_FILES, arrays, strict=True):
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return written


def write_svhn(root: Path, n_train: int, n_test: int, rng: np.random.Generator) -> Written:
    """Writes two MATLAB files: images [32, 32, 3, N], labels [N, 1] of 1 to 10, where 10 is the digit 0."""
    written = random_images(rng, n_train, n_test, (3, 32, 32), 10)
    root.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (("train", *written[:2]), ("test", *written[2:])):
        content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)}
        savemat(root / f"{name}_32x32.mat", content, do_compression=True)
    return written


def write_caltech101(root: Path, n_train: int, n_test: int, rng: np.random.Generator, classes: int = 10) -> None:
    """Writes small photographs of several sizes, some of them gray: a folder per class and one for the background."""
    folder = root / "caltech101" / "101_ObjectCategories"
    for number in range(n_train + n_test):
        name = folder / f"class_{number % classes:02}" / f"image_{number // classes + 1:04}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        side = rng.integers(20, 40, 2)
        image = Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8))
        (image.convert("L") if number % 7 == 0 else image).save(name)
    (folder / "BACKGROUND_Google").mkdir()
    Image.new("RGB", (30, 30)).save(folder / "BACKGROUND_Google" / "image_0001.jpg")


def write_image_folder(root: Path, n_train: int, n_test: int, rng: np.random.Generator) -> None:
    """Writes small PNG images of three classes."""
    for part, count in (("train", n_train), ("test", n_test)):
        for number in range(count):
            name = root / part / f"class_{number % 3}" / f"{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(name)


def write_embeddings(path: Path, n_train: int, n_test: int, rng: np.random.Generator, classes: int = 10) -> None:
    """Random vectors of 16 dimensions with random labels."""
    parts = {
        part: rng.normal(size=(count, 16)).astype(np.float32) for part, count in (("train", n_train), ("test", n_test))
    }
    labels = {f"{part}_labels": np.arange(len(vectors)) % classes for part, vectors in parts.items()}
    np.savez(path, **parts, **labels)
