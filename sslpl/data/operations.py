"""The operations of the strong augmentation on batches of uint8 images, with the same bits as Pillow.

FixMatch (Sohn et al. 2020) and RandAugment (Cubuk et al. 2020) as SSLPM uses them (Hwang et al. 2024).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# In groups that share an implementation: pixel maps, blends, tables of 256 values (fixed, then image-dependent).
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
BLENDED = ("Color", "Sharpness")
FIXED = ("Brightness", "Posterize", "Solarize")
OPERATIONS = ("Identity", *SIGNED, *BLENDED, *FIXED, "Contrast", "AutoContrast", "Equalize")
LEVELS = 10
GRAY = 127
INDEX_TABLE_LIMIT = 1 << 20  # entries; for images above 102x102 pixels the maps are computed per batch instead


def affine_coefficients(name: str, magnitude: int, sign: int, height: int, width: int) -> list[int]:
    """Returns Pillow's map from output to source pixel of an operation in SIGNED as six 16.16 fixed-point numbers."""
    share = sign * (magnitude * 0.3 / LEVELS)
    angle = -math.radians(sign * int(magnitude * 30 / LEVELS) % 360.0)
    cos, sin, x, y = round(math.cos(angle), 15), round(math.sin(angle), 15), width / 2, height / 2
    a, b, c, d, e, f = {
        "Rotate": (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y),
        "ShearX": (1.0, share, 0.0, 0.0, 1.0, 0.0),
        "ShearY": (1.0, 0.0, 0.0, share, 1.0, 0.0),
        "TranslateX": (1.0, 0.0, int(share * width), 0.0, 1.0, 0.0),
        "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, int(share * height)),
    }[name]
    sampled = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)  # at the centers of the pixels
    return [math.floor(value * 65536.0 + 0.5) for value in sampled]


def source_index(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Computes the flat source index of every output pixel, int32 [n, 6] -> int64 [n, H*W]; H*W stands for black."""
    a, b, c, d, e, f = coefficients.view(-1, 6, 1, 1).unbind(1)
    y = torch.arange(height, device=coefficients.device, dtype=torch.int32).view(-1, 1)
    x = torch.arange(width, device=coefficients.device, dtype=torch.int32)
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, height * width).flatten(1).long()


def grayscale(images: Tensor) -> Tensor:
    """Computes Pillow's luma (ITU-R 601-2 in 16.16 fixed point), uint8 [B, C, H, W] -> int32 [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).unsqueeze(1)


def smooth(images: Tensor) -> Tensor:
    """Applies Pillow's SMOOTH filter, 3x3 ones with a 5 in the center over 13; float32, border pixels unchanged."""
    result = images.float()
    row_sum = result[..., :-2] + result[..., 1:-1] + result[..., 2:]
    total = row_sum[..., :-2, :] + row_sum[..., 1:-1, :] + row_sum[..., 2:, :] + 4 * result[..., 1:-1, 1:-1]
    result[..., 1:-1, 1:-1] = ((total + 6.5) / 13).trunc_()  # no multiple of 1/13 is halfway between integers
    return result


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Computes Pillow's blend, degenerate + factor * (images - degenerate) in float32, truncated to uint8."""
    base = degenerate.float()
    return images.float().sub(base).mul_(factor).add_(base).to(torch.uint8)


def fixed_tables() -> Tensor:
    """Returns the lookup tables of Brightness, Posterize and Solarize, uint8 [3, LEVELS, 256]."""
    value, level = torch.arange(256), torch.arange(LEVELS).view(-1, 1)
    brightness = blend(torch.zeros(()), value.expand(LEVELS, -1), blend_factors().view(-1, 1))
    posterize = value & (256 - 2 ** (4 - level * 4 // LEVELS))
    solarize = torch.where(value < 256 - level * 256 // LEVELS, value, 255 - value)
    return torch.stack((brightness, posterize, solarize)).to(torch.uint8)


def blend_factors() -> Tensor:
    """Returns the weight of the image in Brightness, Color, Contrast and Sharpness, float32 [LEVELS]."""
    return torch.tensor([level * 0.9 / LEVELS + 0.05 for level in range(LEVELS)])


def contrast_table(images: Tensor, factor: Tensor) -> Tensor:
    """Returns tables that blend with the mean luma, uint8 [B, C, H, W], float32 [B, 1, 1] -> uint8 [B, 1, 256]."""
    pixels = images.shape[2] * images.shape[3]
    # The mean is rounded to the nearest integer, as in Pillow.
    mean = (2 * grayscale(images).sum((2, 3)) + pixels) // (2 * pixels)
    return blend(mean.unsqueeze(2), torch.arange(256, device=images.device), factor)


def autocontrast_table(images: Tensor) -> Tensor:
    """Returns tables that stretch each channel to 0..255, uint8 [B, C, H, W] -> uint8 [B, C, 256]."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()
    ramp = torch.arange(256, device=images.device, dtype=torch.float64)
    # Not 255.0 / tensor: torch computes a reciprocal and a product, whose rounding can be off by one gray level.
    scale = torch.full_like(low, 255.0).div_((high - low).clamp_(min=1))
    return torch.where(high > low, ramp * scale - low * scale, ramp).clamp_(0, 255).to(torch.uint8)


def equalize_table(images: Tensor) -> Tensor:
    """Returns tables that equalize the histograms in Pillow's integers, uint8 [B, C, H, W] -> uint8 [B, C, 256]."""
    pixels = images.flatten(2)
    histogram = torch.zeros(*pixels.shape[:2], 256, device=images.device, dtype=torch.int32)
    histogram.scatter_add_(2, pixels.long(), histogram.new_ones(()).expand_as(pixels))
    step = (pixels.shape[2] - histogram.gather(2, pixels.amax(2, keepdim=True).long())) // 255
    below = histogram.cumsum(2, dtype=torch.int32) - histogram + step // 2
    equalized = (below.double() / step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    ramp = torch.arange(256, device=images.device, dtype=torch.uint8)
    return torch.where(step > 0, equalized, ramp)  # a single value or too few pixels: unchanged


def cutout_corner(center: Tensor, size: int) -> Tensor:
    """Returns the corner (x, y) of FixMatch's cut-out, clamped at the left and top, float64 -> int64 [B, 2]."""
    return (center - size / 2).clamp(min=0).long()


def cutout(images: Tensor, corner: Tensor, size: int) -> Tensor:
    """Paints gray squares in place, far corner included as in Pillow, uint8 [B, C, H, W]."""
    height, width = images.shape[2:]
    x, y = (torch.arange(side, device=images.device) for side in (width, height))
    left, top = corner.split_with_sizes([1, 1], 1)
    outside_x, outside_y = (x < left) | (x > left + size), (y < top) | (y > top + size)
    # Byte masks packed into words: bitwise operations are vectorized on a CPU, masked_fill is not.
    word = {0: torch.int64, 4: torch.int32}.get(width % 8, torch.uint8)
    keep_x, keep_y = outside_x.byte().neg_().view(word)[:, None, None, :], outside_y.to(word).neg_()[:, None, :, None]
    keep = keep_x | keep_y
    gray = torch.full((8,), GRAY, dtype=torch.uint8, device=images.device).view(word)[:1]
    images.view(word).bitwise_and_(keep).bitwise_or_(keep.bitwise_not_().bitwise_and_(gray))
    return images


class RandAugment:
    """The 14 operations with precomputed tables for images of one size on one device."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        signed_levels = [(name, level, sign) for name in SIGNED for sign in (1, -1) for level in range(LEVELS)]
        maps = [affine_coefficients(*signed_level, height, width) for signed_level in signed_levels]
        self.coefficients = torch.tensor(maps, dtype=torch.int32, device=device)
        fits = len(maps) * height * width <= INDEX_TABLE_LIMIT
        self.index = source_index(self.coefficients, height, width) if fits else None
        self.factor = blend_factors().to(device)
        self.fixed = fixed_tables().unsqueeze(1).expand(-1, 2, -1, -1).reshape(-1, 256).to(device)

    @staticmethod
    def setting(operation: Tensor, magnitude: Tensor, negative: Tensor) -> Tensor:
        """Encodes operation, sign and magnitude as one integer."""
        return (operation * 2 + negative) * LEVELS + magnitude

    def apply_(self, images: Tensor, setting: Tensor, counts: Sequence[int]) -> Tensor:
        """Applies the operations in place to images sorted by operation; `counts` says how many have each."""
        sizes = [counts[0], sum(counts[1:6]), sum(counts[6:8]), sum(counts[8:])]
        _, mapped, blended, looked_up = images.split_with_sizes(sizes)
        _, map_setting, blend_setting, table_setting = setting.split_with_sizes(sizes)
        if len(mapped):
            self._map_pixels(mapped, map_setting)
        if len(blended):
            self._blend(blended, blend_setting, counts[6])
        if len(looked_up):
            self._look_up(looked_up, table_setting, [sum(counts[8:11]), *counts[11:]])
        return images

    def _map_pixels(self, images: Tensor, setting: Tensor) -> None:
        row = setting - 2 * LEVELS * OPERATIONS.index(SIGNED[0])
        if self.index is None:
            index = source_index(self.coefficients.index_select(0, row), self.height, self.width)
        else:
            index = self.index.index_select(0, row)
        pixels = functional.pad(images.flatten(2), (0, 1))  # one black pixel behind the last
        torch.gather(pixels, 2, index.unsqueeze(1).expand(-1, images.shape[1], -1), out=images.flatten(2))

    def _blend(self, images: Tensor, setting: Tensor, color_count: int) -> None:
        color, sharpness = images[:color_count], images[color_count:]
        degenerate = torch.cat((grayscale(color).float().expand_as(color), smooth(sharpness)))
        factor = self.factor.index_select(0, setting % LEVELS).view(-1, 1, 1, 1)
        images.copy_(blend(degenerate, images, factor))

    def _look_up(self, images: Tensor, setting: Tensor, counts: Sequence[int]) -> None:
        _, contrast, autocontrast, equalize = images.split_with_sizes(counts)
        fixed_setting, contrast_setting, *_ = setting.split_with_sizes(counts)
        fixed = self.fixed.index_select(0, fixed_setting - 2 * LEVELS * OPERATIONS.index(FIXED[0]))
        factor = self.factor.index_select(0, contrast_setting % LEVELS).view(-1, 1, 1)
        shared = torch.cat((fixed.unsqueeze(1), contrast_table(contrast, factor)))
        per_channel = (autocontrast_table(autocontrast), equalize_table(equalize))
        table = torch.cat((shared.expand(-1, images.shape[1], -1), *per_channel))
        torch.gather(table, 2, images.flatten(2).long(), out=images.flatten(2))


def apply_operation(images: Tensor, name: str, magnitude: int = 1, negative: bool = False) -> Tensor:
    """Applies one of OPERATIONS at magnitude 1..9 of 10 to every image, uint8 [B, C, H, W] -> the same shape."""
    operation, count = OPERATIONS.index(name), len(images)
    counts = [count * (k == operation) for k in range(len(OPERATIONS))]
    setting = torch.full((count,), (operation * 2 + negative) * LEVELS + magnitude, device=images.device)
    operations = RandAugment(images.shape[2], images.shape[3], images.device)
    return operations.apply_(images.clone(memory_format=torch.contiguous_format), setting, counts)
