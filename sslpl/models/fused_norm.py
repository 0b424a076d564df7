"""Batch norm, residual sum and ReLU as one operation on a GPU; the network's own operations elsewhere (ours)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

TILE_ROWS, TILE_CHANNELS = 32, 64  # rows and channels of a tile of normalized pixels
SUM_ROWS, PROGRAMS = 64, 256  # of sums over rows: rows that are loaded at once, and most programs
_enabled: ContextVar[bool] = ContextVar("fused batch norms", default=False)


@contextmanager
def fused_batch_norms(enabled: bool) -> Iterator[None]:
    """Context manager in which `norm_relu` computes batch norms in training mode by fused kernels."""
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def norm_relu(norm: nn.BatchNorm2d, images: Tensor, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """Computes relu(norm(images) + residual), or without the ReLU."""
    if _enabled.get() and can_fuse_norm(norm, images, residual):
        result: Tensor = FusedNorm.apply(images, norm.weight, norm.bias, residual, norm, relu)
        return result
    out: Tensor = norm(images)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def can_fuse_norm(norm: nn.BatchNorm2d, images: Tensor, residual: Tensor | None) -> bool:
    """True for batch statistics of channels-last images with tracked running averages."""
    return (
        norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and is_matrix(images)
        and images.numel() < 2**31
        and (residual is None or (is_matrix(residual) and residual.dtype == images.dtype))
    )


def is_matrix(images: Tensor) -> bool:
    """True if images [B, C, H, W] are stored as rows of channels."""
    return images.permute(0, 2, 3, 1).is_contiguous()


class FusedNorm(torch.autograd.Function):
    """Batch norm over batch statistics, plus a residual, then ReLU; statistics and gradients of weights in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        relu: bool,
    ) -> Tensor:
        from sslpl.models import norm_kernels as kernels  # imported late: Triton is missing on some platforms

        rows, channels = images.numel() // images.shape[1], images.shape[1]
        mean, rstd, output = torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(images)
        tile, grid, sums = plan(rows, channels)
        arrivals = arrival_counters(norm, images.device)
        parts = weight.new_empty(2, sums["PARTS"], channels)
        kernels.statistics_kernel[sums["PARTS"], grid[1]](
            images, parts, arrivals, mean, rstd, norm.running_mean, norm.running_var, norm.num_batches_tracked,
            rows, channels, -(-rows // sums["PARTS"]), norm.momentum, norm.eps, **sums,
        )  # fmt: skip
        kernels.normalize_kernel[grid](
            images, residual, output, mean, rstd, weight, bias, rows, channels,
            ADD=residual is not None, RELU=relu, **tile,
        )  # fmt: skip
        kept = output if residual is not None and relu else None
        ctx.save_for_backward(images, weight, bias, mean, rstd, kept)
        ctx.add, ctx.relu, ctx.arrivals = residual is not None, relu, arrivals
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from sslpl.models import norm_kernels as kernels

        images, weight, bias, mean, rstd, output = ctx.saved_tensors
        grad = gradients[0].contiguous(memory_format=torch.channels_last)
        rows, channels = images.numel() // images.shape[1], images.shape[1]
        grad_weight, grad_bias, grad_images = map(torch.empty_like, (weight, bias, images))
        grad_residual = torch.empty_like(images) if ctx.add else None
        tile, grid, sums = plan(rows, channels)
        parts = weight.new_empty(2, sums["PARTS"], channels)
        switches = {"ADD": ctx.add, "RELU": ctx.relu}
        kernels.gradient_sums_kernel[sums["PARTS"], grid[1]](
            grad, images, output, parts, ctx.arrivals, mean, rstd, weight, bias, grad_weight, grad_bias,
            rows, channels, -(-rows // sums["PARTS"]), **switches, **sums,
        )  # fmt: skip
        kernels.gradient_kernel[grid](
            grad, images, output, grad_images, grad_residual, mean, rstd, weight, bias, grad_weight, grad_bias,
            rows, channels, **switches, **tile,
        )  # fmt: skip
        return grad_images, grad_weight, grad_bias, grad_residual, None, None


def plan(rows: int, channels: int) -> tuple[dict[str, int], tuple[int, int], dict[str, int]]:
    """Returns the options and the grid of the kernels for tiles, and the options of those for sums over rows."""
    tile = {"ROWS": TILE_ROWS, "CHANNELS": TILE_CHANNELS}
    grid = -(-rows // TILE_ROWS), -(-channels // TILE_CHANNELS)
    parts = max(1, min(PROGRAMS // grid[1], -(-rows // SUM_ROWS)))
    warps = 8 if rows > 2 * SUM_ROWS * parts else 4
    sums = {"PARTS": parts, "MERGED": 32, "ROWS": SUM_ROWS, "CHANNELS": TILE_CHANNELS, "num_warps": warps}
    return tile, grid, sums


def arrival_counters(norm: nn.BatchNorm2d, device: torch.device) -> Tensor:
    """Returns the counters of finished programs of a batch norm, one per block of channels, which stay at zero."""
    counters: Tensor | None = norm.__dict__.get("arrivals")
    if counters is None or counters.device != device:
        counters = torch.zeros(-(-norm.num_features // TILE_CHANNELS), dtype=torch.int32, device=device)
        norm.__dict__["arrivals"] = counters
    return counters
