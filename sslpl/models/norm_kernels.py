"""Triton kernels of batch norm with residual and ReLU: two passes forward and two backward (ours).

Images are matrices [rows, channels], rows = batch x height x width: the channels-last memory format. Sums over rows are
computed in parts in a fixed order, so that results are deterministic; the program that finishes last adds up the parts.
"""

import triton
import triton.language as tl


@triton.jit
def sum_of_parts(
    parts, channel, inside, channels, PARTS: tl.constexpr, MERGED: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Adds up the parts [2, PARTS, channels] of two sums, in tiles whose rows come last: all loads go out at once."""
    firsts = tl.zeros([MERGED, CHANNELS], tl.float32)
    seconds = tl.zeros([MERGED, CHANNELS], tl.float32)
    for start in tl.static_range(0, PARTS, MERGED):
        index = start + tl.arange(0, MERGED)
        valid = (index < PARTS)[:, None] & inside[None, :]
        at = index[:, None] * channels + channel[None, :]
        firsts += tl.load(parts + at, mask=valid, other=0.0, cache_modifier=".cg")
        seconds += tl.load(parts + PARTS * channels + at, mask=valid, other=0.0, cache_modifier=".cg")
    return tl.sum(firsts, 0), tl.sum(seconds, 0)


@triton.jit
def statistics_kernel(
    x, parts, arrivals, mean, rstd, running_mean, running_var, tracked,
    rows, channels, chunk, momentum, eps,
    PARTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Computes mean and reciprocal standard deviation of each channel and updates the running statistics."""
    part, block = tl.program_id(0), tl.program_id(1)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    # Sums are taken around a pixel's value, so that a mean far from zero does not cancel the variance.
    pivot = tl.load(x + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    last = tl.minimum((part + 1) * chunk, rows)
    for first in range(part * chunk, last, ROWS):
        row = first + tl.arange(0, ROWS)
        valid = (row < last)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], mask=valid, other=0.0).to(tl.float32)
        deviation = tl.where(valid, value - pivot[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    tl.store(parts + part * channels + channel, tl.sum(total, 0), mask=inside)
    tl.store(parts + (PARTS + part) * channels + channel, tl.sum(squares, 0), mask=inside)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + block, 1) == PARTS - 1:
        first_moment, second_moment = sum_of_parts(parts, channel, inside, channels, PARTS, MERGED, CHANNELS)
        first_moment /= rows
        variance = tl.maximum(second_moment / rows - first_moment * first_moment, 0.0)
        average = first_moment + pivot
        tl.store(mean + channel, average, mask=inside)
        tl.store(rstd + channel, 1.0 / tl.sqrt(variance + eps), mask=inside)
        before = tl.load(running_mean + channel, mask=inside)
        tl.store(running_mean + channel, before + momentum * (average - before), mask=inside)
        before = tl.load(running_var + channel, mask=inside)
        unbiased = variance * (rows / (rows - 1.0))
        tl.store(running_var + channel, before + momentum * (unbiased - before), mask=inside)
        if block == 0:
            tl.store(tracked, tl.load(tracked) + 1)
        tl.store(arrivals + block, 0)


@triton.jit
def normalize_kernel(
    x, residual, y, mean, rstd, weight, bias, rows, channels,
    ADD: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes y = relu(norm(x) + residual) of a tile."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    valid = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * channels + channel[None, :]
    slope = tl.load(weight + channel, mask=inside) * tl.load(rstd + channel, mask=inside)
    center, shift = tl.load(mean + channel, mask=inside), tl.load(bias + channel, mask=inside)
    value = tl.load(x + at, mask=valid).to(tl.float32)
    value = (value - center[None, :]) * slope[None, :] + shift[None, :]
    if ADD:
        value += tl.load(residual + at, mask=valid).to(tl.float32)
    if RELU:
        value = tl.where(value < 0.0, 0.0, value)  # unlike a maximum, keeps NaN
    tl.store(y + at, value.to(y.dtype.element_ty), mask=valid)


@triton.jit
def masked_gradient(
    grad, x, y, at, valid, center, slope, shift,
    ADD: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Loads the gradient behind the ReLU and the deviation x - mean; without a residual y is recomputed from x."""
    gradient = tl.load(grad + at, mask=valid, other=0.0).to(tl.float32)
    deviation = tl.load(x + at, mask=valid, other=0.0).to(tl.float32) - center[None, :]
    if RELU:
        if ADD:
            output = tl.load(y + at, mask=valid, other=0.0).to(tl.float32)
        else:
            output = deviation * slope[None, :] + shift[None, :]
        gradient = tl.where(output <= 0.0, 0.0, gradient)
    return gradient, deviation


@triton.jit
def gradient_sums_kernel(
    grad, x, y, parts, arrivals, mean, rstd, weight, bias,
    grad_weight, grad_bias, rows, channels, chunk,
    ADD: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of weight and bias."""
    part, block = tl.program_id(0), tl.program_id(1)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    center, scale = tl.load(mean + channel, mask=inside), tl.load(rstd + channel, mask=inside)
    slope, shift = scale * tl.load(weight + channel, mask=inside), tl.load(bias + channel, mask=inside)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    last = tl.minimum((part + 1) * chunk, rows)
    for first in range(part * chunk, last, ROWS):
        row = first + tl.arange(0, ROWS)
        valid = (row < last)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        gradient, deviation = masked_gradient(grad, x, y, at, valid, center, slope, shift, ADD, RELU)
        total += gradient
        products += gradient * deviation
    tl.store(parts + part * channels + channel, tl.sum(total, 0), mask=inside)
    tl.store(parts + (PARTS + part) * channels + channel, tl.sum(products, 0), mask=inside)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + block, 1) == PARTS - 1:
        sum_gradient, sum_product = sum_of_parts(parts, channel, inside, channels, PARTS, MERGED, CHANNELS)
        tl.store(grad_bias + channel, sum_gradient, mask=inside)
        tl.store(grad_weight + channel, sum_product * scale, mask=inside)
        tl.store(arrivals + block, 0)


@triton.jit
def gradient_kernel(
    grad, x, y, grad_x, grad_residual, mean, rstd, weight, bias,
    grad_weight, grad_bias, rows, channels,
    ADD: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of the images and of the residual of a tile."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    valid = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * channels + channel[None, :]
    center, scale = tl.load(mean + channel, mask=inside), tl.load(rstd + channel, mask=inside)
    slope, shift = scale * tl.load(weight + channel, mask=inside), tl.load(bias + channel, mask=inside)
    gradient, deviation = masked_gradient(grad, x, y, at, valid, center, slope, shift, ADD, RELU)
    if ADD:
        tl.store(grad_residual + at, gradient.to(grad_residual.dtype.element_ty), mask=valid)
    mean_gradient = tl.load(grad_bias + channel, mask=inside) / rows
    mean_product = tl.load(grad_weight + channel, mask=inside) * scale / rows
    value = slope[None, :] * (gradient - mean_gradient[None, :] - deviation * mean_product[None, :])
    tl.store(grad_x + at, value.to(grad_x.dtype.element_ty), mask=valid)
