"""bfloat16 copies of convolution weights, whose gradients are computed beside the backward pass (ours).

Under autocast each convolution casts its weight, and the gradient back, with a kernel of its own. Here one kernel
writes all copies before a step and one widens all gradients after it, with the same bits. On a stream of their own,
weight gradients run beside the gradients of the images: the backward pass waits for the latter alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sslpl.models.convolution import Conv2d, convolution_gradient

ALIGNMENT = 8  # channels: with fewer a GPU's library has no fast convolution in bfloat16


class WeightCopies:
    """Copies of the trained weights of a network's convolutions, for the steps of a training phase."""

    def __init__(self, network: nn.Module, overlap: bool) -> None:
        parts = [part for part in network.modules() if isinstance(part, Conv2d) and part.weight.requires_grad]
        on_gpu = bool(parts) and parts[0].weight.is_cuda
        self.stream = torch.cuda.Stream() if overlap and on_gpu else None  # type: ignore[no-untyped-call]
        self.copies = [WeightCopy(part, self.stream) for part in parts]

    @contextmanager
    def use(self) -> Iterator[None]:
        """Context manager in which the convolutions use copies of their current weights."""
        copy_all([copy.unpadded(copy.values) for copy in self.copies], [copy.weight for copy in self.copies])
        for copy in self.copies:
            copy.convolution.copied = copy
        try:
            yield
        finally:
            for copy in self.copies:
                copy.convolution.copied = None

    def store_gradients(self) -> None:
        """Stores the gradients of a backward pass as those of the weights, in float32."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        used = [(copy.weight, copy.unpadded(copy.gradient)) for copy in self.copies if copy.gradient is not None]
        for weight, _ in used:
            weight.grad = torch.empty_like(weight)
        copy_all([weight.grad for weight, _ in used if weight.grad is not None], [gradient for _, gradient in used])
        for copy in self.copies:
            copy.gradient, copy.read = None, []


class WeightCopy:
    """The bfloat16 copy of a convolution's weight, padded by input channels of zeros if it has few; its gradient."""

    def __init__(self, convolution: Conv2d, stream: torch.cuda.Stream | None) -> None:
        self.convolution, self.weight, self.stream = convolution, convolution.weight, stream
        channels = convolution.in_channels
        self.padding = -channels % ALIGNMENT if convolution.weight.is_cuda and channels < ALIGNMENT else 0
        self.values = pad(self.weight.detach().bfloat16(), (0, 0, 0, 0, 0, self.padding))
        if self.padding:
            self.values = self.values.contiguous(memory_format=torch.channels_last)
        self.gradient: Tensor | None = None
        self.read: list[Tensor] = []  # by the stream: kept until it is waited for

    def padded(self, images: Tensor) -> Tensor:
        """Adds the channels of zeros to images [B, C, H, W]."""
        return pad(images, (0, 0, 0, 0, 0, self.padding)) if self.padding else images

    def unpadded(self, values: Tensor) -> Tensor:
        """Returns a weight or its gradient without the channels of zeros, as a view."""
        return values[:, : self.weight.shape[1]] if self.padding else values

    def add_gradient(self, images: Tensor, gradient: Tensor) -> None:
        """Computes the weight's gradient from that of the convolution's output, on the stream."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
            self.read += [images, gradient]
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            computed = convolution_gradient(self.convolution, gradient, images, self.values, of_weight=True)
            self.gradient = computed if self.gradient is None else self.gradient + computed


@torch.no_grad()
def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies tensors by as few kernels as possible: one for those whose memory formats agree."""
    pairs = list(zip(targets, sources, strict=True))
    alike = [pair for pair in pairs if pair[0].stride() == pair[1].stride()]
    if alike:
        torch._foreach_copy_([target for target, _ in alike], [source for _, source in alike])
    for target, source in pairs:
        if target.stride() != source.stride():
            target.copy_(source)
