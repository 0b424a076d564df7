"""Shares sets of images among the runs of one process, which would otherwise hold a copy each."""

from collections.abc import Callable, Hashable
from weakref import WeakValueDictionary

import torch

from sslpl.types import Images

_held: WeakValueDictionary[Hashable, Images] = WeakValueDictionary()


def share_images(key: Hashable, device: torch.device, place: Callable[[], Images]) -> Images:
    """Returns the images that a run of this process holds under an equal key and device, else those of `place()`."""
    images = _held.get((key, device))
    if images is None:
        images = _held[key, device] = place()
        if device.type == "cuda":  # other runs read the images on other streams
            torch.cuda.current_stream(device).synchronize()
    return images
