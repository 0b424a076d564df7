"""Fingerprints of sets of images: hashes of their pixels, or of what identifies their files."""

import hashlib

import torch

from sslpl.data.variants import ImageSubset
from sslpl.types import Images

BATCH = 1024  # images that are hashed at a time


def images_fingerprint(images: Images) -> str:
    """Hashes the pixels of images to 64 hexadecimal digits, without reading files that were fingerprinted before."""
    content = hashlib.sha256(repr((len(images), images.shape)).encode())
    known = getattr(images, "fingerprint", None)
    if isinstance(images, ImageSubset):
        content.update(images_fingerprint(images.images).encode())
        content.update(images.index.cpu().contiguous().numpy().data)
    elif known is not None:
        content.update(known.encode())
    else:
        for batch in images.batches(torch.split(torch.arange(len(images)), BATCH)):
            content.update(batch.cpu().contiguous().numpy().data)
    return content.hexdigest()
