"""Synchronized batch normalization over all processes, on any device; torch's SyncBatchNorm needs CUDA."""

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
    """Returns a context in which batch norms in training mode use the statistics of all processes' images.

    It has no effect elsewhere: a copy of a network that a query strategy trains on one rank does not communicate.
    """
    return nullcontext() if world.size == 1 else SynchronizedBatchNorm(world)


class SynchronizedBatchNorm(TorchFunctionMode):
    """Replaces `torch.nn.functional.batch_norm` by `batch_norm`."""

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
    """True if there are no images, which some networks cannot forward, and no batch norm to synchronize."""
    return len(images) == 0 and not any(isinstance(layer, _BatchNorm) for layer in network.modules())


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
    """Computes torch's `batch_norm` over the images of all processes, with statistics in float32."""
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
    """Returns count [], mean and biased variance [C] of each channel over all processes (Chan et al. 1983)."""
    var, mean = torch.var_mean(images.float(), dim=reduced_dims(images), correction=0)
    local_count = mean.new_full((1,), images.numel() // images.shape[1])
    local_stats = torch.cat([local_count, mean, var]).nan_to_num()  # NaN without images, which then have weight 0
    all_stats = all_gather(world, local_stats[None], [1] * world.size)
    counts, means, variances = torch.split(all_stats, [1, len(mean), len(var)], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(dim=0)
    return counts.sum(), mean, (share * (variances + (means - mean) ** 2)).sum(dim=0)


def reduced_dims(images: Tensor) -> list[int]:
    """Returns all dimensions except the channels."""
    return [0, *range(2, images.ndim)]


def per_channel(values: Tensor, images: Tensor) -> Tensor:
    """Reshapes values [C] to broadcast against images [B, C, ...]."""
    return values.view(1, -1, *[1] * (images.ndim - 2))


class _Normalize(torch.autograd.Function):
    """Normalization with the gradient through the statistics, summed over all processes (Ioffe and Szegedy 2015)."""

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
        normalized = (images.float() - per_channel(mean, images)) * per_channel(scale, images)
        grad_weight, grad_bias = (grad * normalized).sum(dim=dims), grad.sum(dim=dims)
        sum_scaled, sum_grad = grad_weight.clone(), grad_bias.clone()
        all_reduce_sum(ctx.world, [sum_scaled, sum_grad])
        centered = grad - per_channel(sum_grad / count, images) - normalized * per_channel(sum_scaled / count, images)
        grad_images = (centered * per_channel(weight.float() * scale, images)).to(images.dtype)
        return grad_images, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None, None, None
