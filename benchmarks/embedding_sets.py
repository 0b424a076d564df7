"""Writes the sets of embeddings of the experiments in docs/results.md: python benchmarks/embedding_sets.py --help."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslpl.data import digits, fashion_mnist
from sslpl.data.images import TensorImages
from sslpl.types import Dataset, Images

COMPONENTS = 128
Arrays = dict[str, np.ndarray]


def pixels(images: Images) -> Tensor:
    """Returns the pixels of images held in memory, [N, C H W] float32 in 0..1."""
    if not isinstance(images, TensorImages):
        raise TypeError("the images must be held in memory")
    return images.data.flatten(1).float() / 255


def principal_components(train: Tensor, test: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Projects train and test on the first principal components of train, exactly, in float64."""
    mean = train.double().mean(dim=0)
    centered = train.double() - mean
    _, vectors = torch.linalg.eigh(centered.T @ centered)
    axes = vectors.flip(1)[:, :count]
    return (centered @ axes).float(), ((test.double() - mean) @ axes).float()


def embedded(dataset: Dataset, train: Tensor, test: Tensor) -> Arrays:
    """Returns embeddings of a dataset as the arrays of dataset=embeddings."""
    labels = {"train_labels": dataset.train_labels.numpy(), "test_labels": dataset.test_labels.numpy()}
    return {"train": train.numpy(), "test": test.numpy(), "class_names": np.array(dataset.class_names), **labels}


def save(folder: Path, name: str, arrays: Arrays, rows: int | None = None) -> None:
    """Writes a set of embeddings, with the first rows of its training set if a number is given."""
    if rows is not None:
        name = f"{name}_{rows}"
        arrays = arrays | {key: arrays[key][:rows] for key in ("train", "train_labels")}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    train, test = arrays["train"], arrays["test"]
    print(f"{file}  {len(train):,} and {len(test):,} vectors of {train.shape[1]} dimensions")


def main() -> None:
    """Writes digits_pixels.npz, fashion_pca.npz and, if it is given, the part of a file of sslpl.embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST, as dataset.root")
    parser.add_argument("--output", type=Path, default=Path("data/embeddings"), help="folder of the sets")
    parser.add_argument("--rows", type=int, help="only the first ROWS training images of Fashion-MNIST")
    parser.add_argument("--embedded", type=Path, help="also a set from this file of python -m sslpl.embed")
    arguments = parser.parse_args()
    output, rows = arguments.output, arguments.rows
    data = digits()
    save(output, "digits_pixels", embedded(data, pixels(data.train), pixels(data.test)))
    data = fashion_mnist(arguments.root)
    vectors = principal_components(pixels(data.train), pixels(data.test), COMPONENTS)
    save(output, "fashion_pca", embedded(data, *vectors), rows)
    if arguments.embedded is not None:
        with np.load(arguments.embedded) as file:
            save(output, arguments.embedded.stem, dict(file), rows)


if __name__ == "__main__":
    main()
