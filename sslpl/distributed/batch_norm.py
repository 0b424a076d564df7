"""Batch normalization over a batch that several processes hold, on any device: torch's own is for CUDA alone."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sslpl.distributed.collectives import all_gather, all_reduce_sum
from sslpl.distributed.world import World


def synchronized_batch_norm(world: World) -> AbstractContextManager[Any]:
    """Batch norms that train, of whatever network, normalize inside by the statistics of all processes' images.

    Only what is called inside is concerned: a copy of a network that a query strategy trains alone waits for nobody.
    """
    return nullcontext() if world.size == 1 else SynchronizedBatchNorm(world)


class SynchronizedBatchNorm(TorchFunctionMode):
    """Stands in for `torch.nn.functional.batch_norm`."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is functional.batch_norm:
            return batch_norm(self.world, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def can_skip_forward(network: nn.Module, images: Tensor) -> bool:
    """Whether a network need not pass the images: there are none, which some cannot pass, and no batch norm waits."""
    return len(images) == 0 and not any(isinstance(part, _BatchNorm) for part in network.modules())


def batch_norm(
    world: World,
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's, over all processes; statistics in float32."""
    if not training:
        return functional.batch_norm(images, running_mean, running_var, weight, bias, False, momentum, eps)
    count, mean, var = batch_statistics(world, images.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    result: Tensor = _Normalize.apply(images, weight, bias, mean, (var + eps).rsqrt(), count, world)
    return result


def batch_statistics(world: World, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count [], mean and biased variance [C] of each channel over all processes (Chan et al. 1983)."""
    var, mean = torch.var_mean(images.float(), dim=reduced_dims(images), correction=0)
    here = mean.new_full((1,), images.numel() // images.shape[1])
    own = torch.cat([here, mean, var]).nan_to_num()  # of no images: counts nothing
    every = all_gather(world, own[None], [1] * world.size)
    counts, means, variances = torch.split(every, [1, len(mean), len(var)], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(dim=0)
    return counts.sum(), mean, (share * (variances + (means - mean) ** 2)).sum(dim=0)


def reduced_dims(images: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, images.ndim)]


def per_channel(values: Tensor, images: Tensor) -> Tensor:
    """Values [C] in a shape that stands beside images [B, C, ...]."""
    return values.view(1, -1, *[1] * (images.ndim - 2))


class _Normalize(torch.autograd.Function):
    """Through the statistics too, whose gradient has a part in every process (Ioffe and Szegedy 2015)."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor, world: World
    ) -> Tensor:
        ctx.save_for_backward(images, weight, mean, scale, count)
        ctx.world = world
        slope = weight.float() * scale
        shift = bias.float() - mean * slope
        return torch.addcmul(per_channel(shift, images), images.float(), per_channel(slope, images)).to(images.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale, count = ctx.saved_tensors
        grad, dims = gradients[0].float(), reduced_dims(images)
        normal = (images.float() - per_channel(mean, images)) * per_channel(scale, images)
        to_weight, to_bias = (grad * normal).sum(dim=dims), grad.sum(dim=dims)
        along, all_of = to_weight.clone(), to_bias.clone()
        all_reduce_sum(ctx.world, [along, all_of])
        centered = grad - per_channel(all_of / count, images) - normal * per_channel(along / count, images)
        to_images = (centered * per_channel(weight.float() * scale, images)).to(images.dtype)
        return to_images, to_weight.to(weight.dtype), to_bias.to(weight.dtype), None, None, None, None
