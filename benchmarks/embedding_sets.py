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


def save(file: Path, dataset: Dataset, train: Tensor, test: Tensor) -> None:
    """Writes embeddings of a dataset in the format of dataset=embeddings."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = {"train_labels": dataset.train_labels.numpy(), "test_labels": dataset.test_labels.numpy()}
    names = np.array(dataset.class_names)
    np.savez(file, train=train.numpy(), test=test.numpy(), class_names=names, **labels)  # type: ignore[arg-type]
    print(f"{file}  {len(train):,} and {len(test):,} vectors of {train.shape[1]} dimensions")


def main() -> None:
    """Writes digits_pixels.npz and fashion_pca.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST, as dataset.root")
    parser.add_argument("--output", type=Path, default=Path("data/embeddings"), help="folder of the sets")
    arguments = parser.parse_args()
    data = digits()
    save(arguments.output / "digits_pixels.npz", data, pixels(data.train), pixels(data.test))
    data = fashion_mnist(arguments.root)
    vectors = principal_components(pixels(data.train), pixels(data.test), COMPONENTS)
    save(arguments.output / "fashion_pca.npz", data, *vectors)


if __name__ == "__main__":
    main()
