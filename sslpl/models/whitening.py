"""Whitening filters: a first convolution that decorrelates patches, computed from images without labels."""

import torch
from torch import Tensor


def whitening_filters(images: Tensor, kernel: int) -> Tensor:
    """Returns orthogonal filters [D, C, kernel, kernel] whose outputs on normalized images [N, C, H, W] are white.

    D = C kernel^2. The filters are the eigenvectors of the second moments of the patches, largest first, over the
    square roots of the eigenvalues. These are raised by a hundredth of their mean (ours; airbench adds a constant),
    since patches of smooth images hardly vary in some directions, and their noise would be amplified.
    """
    channels = images.shape[1]
    covariance = patch_covariance(images, kernel)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    scales = (eigenvalues + 0.01 * eigenvalues.mean()).rsqrt()
    filters: Tensor = (eigenvectors * scales).flip(1).T.reshape(-1, channels, kernel, kernel).float()
    return filters


def patch_covariance(images: Tensor, kernel: int) -> Tensor:
    """Returns the second moments [D, D], in float64, of all kernel x kernel patches of images [N, C, H, W]."""
    dimensions = images.shape[1] * kernel**2
    total, count = torch.zeros(dimensions, dimensions, dtype=torch.float64), 0
    for part in torch.split(images, 64):
        patches = torch.nn.functional.unfold(part.float(), kernel).transpose(1, 2).reshape(-1, dimensions).double()
        total += (patches.T @ patches).cpu()
        count += len(patches)
    return total / count
