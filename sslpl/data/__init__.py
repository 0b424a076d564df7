"""Datasets, batches, and augmentation of whole batches on the device."""

from sslpl.data.datasets import cifar10, cifar100, digits, fashion_mnist, svhn
from sslpl.data.embeddings import embeddings
from sslpl.data.folders import caltech101, image_folder

__all__ = [
    "caltech101",
    "cifar10",
    "cifar100",
    "digits",
    "embeddings",
    "fashion_mnist",
    "image_folder",
    "svhn",
]
