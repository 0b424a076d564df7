"""Self-supervised pretraining: `python -m sslpl.pretrain`."""

from sslpl.pretrain.simclr import SimCLR

__all__ = [
    "SimCLR",
]
