"""Augmentation equals Pillow bit for bit, and its draws have the published distribution."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from sslpl.data.augmentation import Augmentation, StrongDraws, WeakDraws, crop_flip, take_draws
from sslpl.data.operations import OPERATIONS, SIGNED, apply_operation, cutout, cutout_corner

PLAIN = ("Identity", "AutoContrast", "Equalize")
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 8, 8), (1, 8, 8), (3, 33, 47), (1, 47, 33), (3, 96, 96)]
CIFAR = (3, 32, 32)


def random_images(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    """Returns noise, a narrow range of values and some gradients: histograms of different kinds."""
    generator = torch.Generator().manual_seed(sum(shape))
    noise = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    noise[1::3] = noise[1::3] // 5 + 90
    ramp = torch.linspace(3, 251, shape[1] * shape[2]).view(shape[1:])
    noise[2::3] = (ramp + noise[2::3] / 60).clamp(max=255).to(torch.uint8)
    return noise


def edge_images(channels: int, height: int, width: int) -> Tensor:
    """Returns constant, black, white, two-valued and nearly constant images: the edge cases of histogram operations."""
    black = torch.zeros(channels, height, width, dtype=torch.uint8)
    checkers = (torch.arange(height).view(-1, 1) + torch.arange(width)) % 2
    two = torch.where(checkers.bool(), 7, 201).to(torch.uint8).expand_as(black)
    one_pixel, extremes, neighbors, quarter = black + 100, black.clone(), black + 254, black.clone()
    one_pixel[:, 0, 0] = 101
    extremes[:, -1, -1] = 255
    neighbors[:, :, ::2] = 255
    quarter[:, : height // 2, : width // 2] = 9
    mixed = torch.stack([[black[0], two[0], black[0] + 255][k % 3] for k in range(channels)])
    return torch.stack((black, black + 255, black + 100, two, one_pixel, extremes, neighbors, quarter, mixed))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def pil_operation(image: Image.Image, name: str, magnitude: int, negative: bool) -> Image.Image:
    """Applies an operation of FixMatch (Sohn et al. 2020) with Pillow."""
    share = float(magnitude) * 0.3 / 10 * (-1 if negative else 1)
    factor = float(magnitude) * 0.9 / 10 + 0.05
    degrees = int(magnitude * 30 / 10) * (-1 if negative else 1)
    affine = {
        "ShearX": (1, share, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, share, 1, 0),
        "TranslateX": (1, 0, int(share * image.width), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, int(share * image.height)),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(factor)
    return {
        "Identity": lambda: image,
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Posterize": lambda: ImageOps.posterize(image, int(magnitude * 4 / 10) + 4),
        "Solarize": lambda: ImageOps.solarize(image, 256 - int(magnitude * 256 / 10)),
        "Rotate": lambda: image.rotate(degrees),
    }[name]()


def pil_cutout(image: Image.Image, center: tuple[float, float], size: int) -> Image.Image:
    first = [int(max(0, c - size / 2.0)) for c in center]
    last = [int(min(side, c + size)) for side, c in zip(image.size, first, strict=True)]
    image = image.copy()
    ImageDraw.Draw(image).rectangle((*first, *last), 127 if image.mode == "L" else (127, 127, 127))
    return image


def pil_crop_flip(image: Image.Image, flip: bool, shift: tuple[int, int], padding: int) -> Image.Image:
    """Flips and crops as torchvision's RandomHorizontalFlip and RandomCrop."""
    image = ImageOps.mirror(image) if flip else image
    top, left = shift
    padded = ImageOps.expand(image, padding, 0)
    return padded.crop((left, top, left + image.width, top + image.height))


def pil_strong(image: Image.Image, draws: StrongDraws, k: int, padding: int, size: int) -> Image.Image:
    image = pil_crop_flip(image, bool(draws.flip[k]), tuple(draws.shift[k].tolist()), padding)
    for j in range(2):
        if draws.applied[k, j]:
            name = OPERATIONS[draws.operation[k, j]]
            image = pil_operation(image, name, int(draws.magnitude[k, j]), bool(draws.negative[k, j]))
    return pil_cutout(image, tuple(draws.center[k].tolist()), size) if size else image


def settings(name: str) -> list[tuple[int, bool]]:
    magnitudes = [1] if name in PLAIN else range(1, 10)
    return [(m, negative) for m in magnitudes for negative in ([False, True] if name in SIGNED else [False])]


def assert_operation_is_pillows(images: Tensor, name: str, chosen: list[tuple[int, bool]]) -> None:
    pictures = [to_pil(image) for image in images]
    for magnitude, negative in chosen:
        expected = torch.stack([from_pil(pil_operation(p, name, magnitude, negative)) for p in pictures])
        before = images.clone()
        result = apply_operation(images, name, magnitude, negative)
        assert torch.equal(result, expected), (magnitude, negative)
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operation_is_pillows(shape: tuple[int, int, int], name: str) -> None:
    assert_operation_is_pillows(random_images(shape), name, settings(name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows_on_large_images(name: str) -> None:
    assert_operation_is_pillows(random_images((3, 224, 224)), name, settings(name)[-4:])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 8, 8)], ids=str)
def test_operation_is_pillows_on_edge_images(shape: tuple[int, int, int], name: str) -> None:
    assert_operation_is_pillows(edge_images(*shape), name, settings(name))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
def test_histogram_operations_over_all_ranges(name: str) -> None:
    """Every lowest and highest value, where a rounding difference of the stretch would show."""
    low, high = torch.triu_indices(256, 256)[:, ::13]
    ramp = torch.linspace(0, 1, 30 * 31).view(1, 30, 31)
    images = (low.view(-1, 1, 1, 1) + ramp * (high - low).view(-1, 1, 1, 1)).to(torch.uint8)
    assert_operation_is_pillows(images, name, settings(name)[:2])


def test_color_operations_over_all_channel_mixes() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 200, 200), generator=generator, dtype=torch.uint8)
    for name in ("Color", "Contrast", "Sharpness", "Brightness"):
        assert_operation_is_pillows(images, name, settings(name))


@pytest.mark.parametrize(("shape", "padding"), [(CIFAR, 4), ((1, 8, 8), 1), ((3, 33, 47), 4), ((1, 9, 7), 0)])
def test_every_crop_and_flip_is_pillows(shape: tuple[int, int, int], padding: int) -> None:
    side = torch.arange(2 * padding + 1)
    grid = torch.cartesian_prod(side, side, torch.arange(2))
    draws = WeakDraws(grid[:, 2].bool(), grid[:, :2])
    images = random_images(shape, len(grid))
    expected = [
        from_pil(pil_crop_flip(to_pil(image), bool(flip), (int(dy), int(dx)), padding))
        for image, (dy, dx, flip) in zip(images, grid, strict=True)
    ]
    assert torch.equal(crop_flip(images, draws, padding), torch.stack(expected))


@pytest.mark.parametrize(("shape", "size"), [(CIFAR, 16), ((3, 33, 47), 5), ((1, 8, 8), 4), ((1, 28, 28), 40)])
def test_cutout_is_pillows(shape: tuple[int, int, int], size: int) -> None:
    side = torch.tensor([shape[2], shape[1]], dtype=torch.float64)
    edges = torch.cartesian_prod(*[torch.tensor([0, 0.25, 0.5, 1 - 1e-9], dtype=torch.float64)] * 2) * side
    generator = torch.Generator().manual_seed(0)
    center = torch.cat((edges, torch.rand(200, 2, generator=generator, dtype=torch.float64) * side))
    images = random_images(shape, len(center))
    expected = [from_pil(pil_cutout(to_pil(images[k]), tuple(center[k].tolist()), size)) for k in range(216)]
    assert torch.equal(cutout(images, cutout_corner(center, size), size), torch.stack(expected))


def make(shape: tuple[int, int, int], padding: int = 4, size: int = 16, flip: bool = True) -> Augmentation:
    mean, std = [0.51, 0.49, 0.44][: shape[0]], [0.27, 0.26, 0.28][: shape[0]]
    return Augmentation(shape, mean, std, flip=flip, padding=padding, cutout=size)


@pytest.mark.parametrize(
    ("shape", "count", "padding", "size"),
    [
        (CIFAR, 1200, 4, 16),
        ((1, 28, 28), 500, 3, 16),
        ((1, 8, 8), 500, 1, 4),
        ((3, 33, 47), 300, 4, 0),
        ((3, 224, 224), 24, 4, 16),
    ],
)
def test_strong_is_pillows(shape: tuple[int, int, int], count: int, padding: int, size: int) -> None:
    augmentation, images = make(shape, padding, size), random_images(shape, count)
    draws = augmentation.draw_strong(count, torch.Generator().manual_seed(3))
    expected = [from_pil(pil_strong(to_pil(images[k]), draws, k, padding, size)) for k in range(count)]
    assert torch.equal(augmentation.strong_uint8(images, draws), torch.stack(expected))
    torch.testing.assert_close(augmentation.strong(images, draws), augmentation.normalize(torch.stack(expected)))


@pytest.mark.parametrize("shape", [CIFAR, (1, 8, 8), (3, 33, 47)], ids=str)
def test_views_are_normalized_and_channels_last(shape: tuple[int, int, int]) -> None:
    augmentation, images = make(shape), random_images(shape, 40)
    mean, std = torch.tensor([0.51, 0.49, 0.44])[: shape[0]], torch.tensor([0.27, 0.26, 0.28])[: shape[0]]
    generator = torch.Generator().manual_seed(0)
    weak, strong = augmentation.draw_weak(40, generator), augmentation.draw_strong(40, generator)
    pairs = (
        (augmentation.normalize(images), images),
        (augmentation.weak(images, weak), crop_flip(images, weak, 4)),
        (augmentation.strong(images, strong), augmentation.strong_uint8(images, strong)),
    )
    for view, pixels in pairs:
        expected = (pixels / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-6)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)


def test_views_depend_on_the_draws_alone() -> None:
    """A batch equals its halves, its images in another order and memory format, and is left as it was."""
    augmentation, images = make(CIFAR), random_images(CIFAR, 301)
    before = images.clone()
    draws = augmentation.draw_strong(301, torch.Generator().manual_seed(5))
    weak = WeakDraws(*draws[:2])
    at_once, weak_at_once = augmentation.strong(images, draws), augmentation.weak(images, weak)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(0))
    for index in (slice(0, 150), slice(150, 301), slice(0, 1), order):
        assert torch.equal(augmentation.strong(images[index], take_draws(draws, index)), at_once[index])
        assert torch.equal(augmentation.weak(images[index], take_draws(weak, index)), weak_at_once[index])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation.strong(channels_last, draws), at_once)
    assert torch.equal(augmentation.weak(channels_last, weak), weak_at_once)
    assert torch.equal(images, before)
    assert augmentation.strong(images[:0], take_draws(draws, slice(0, 0))).shape == (0, *CIFAR)
    assert augmentation.weak(images[:0], take_draws(weak, slice(0, 0))).shape == (0, *CIFAR)


def test_draws_follow_the_seed() -> None:
    augmentation = make(CIFAR)
    seeded = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (augmentation.draw_strong(50, generator) for generator in seeded)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_draws_have_the_published_distribution() -> None:
    """Bounds of five standard deviations."""
    n, augmentation = 60_000, make((3, 33, 47))
    draws = augmentation.draw_strong(n, torch.Generator().manual_seed(11))

    def assert_uniform(values: Tensor, low: int, high: int) -> None:
        assert (values.min(), values.max()) == (low, high)
        share, options = values.bincount()[low:] / n, high - low + 1
        assert (share - 1 / options).abs().max() < 5 * (1 / options / n) ** 0.5

    assert_uniform(draws.flip.long(), 0, 1)
    for j in range(2):
        assert_uniform(draws.shift[:, j], 0, 8)
        assert_uniform(draws.operation[:, j], 0, 13)
        assert_uniform(draws.magnitude[:, j], 1, 9)
        assert_uniform(draws.negative[:, j].long(), 0, 1)
        assert_uniform(draws.applied[:, j].long(), 0, 1)
    assert_uniform(draws.center[:, 0].long(), 0, 46)
    assert_uniform(draws.center[:, 1].long(), 0, 32)
    columns = torch.cat([draws.flip[:, None], *draws[1:]], 1).T.double()
    assert (torch.corrcoef(columns) - torch.eye(len(columns))).abs().max() < 5 / n**0.5


def test_flip_and_padding_can_be_switched_off() -> None:
    augmentation, images = make((1, 8, 8), padding=0, size=0, flip=False), random_images((1, 8, 8), 20)
    draws = augmentation.draw_weak(20, torch.Generator().manual_seed(0))
    assert not draws.flip.any()
    assert torch.equal(augmentation.weak(images, draws), augmentation.normalize(images))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.uint8)])
def test_wrong_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        make(CIFAR).normalize(images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [CIFAR, (1, 8, 8), (3, 224, 224)], ids=str)
def test_cuda_equals_cpu_without_synchronization(shape: tuple[int, int, int]) -> None:
    options = {"flip": True, "padding": 4, "cutout": shape[1] // 2}
    statistics = ([0.5] * shape[0], [0.25] * shape[0])
    on_cpu = Augmentation(shape, *statistics, **options)
    on_cuda = Augmentation(shape, *statistics, **options, device="cuda")
    images = random_images(shape, 200)
    there = images.cuda()
    draws = on_cpu.draw_strong(200, torch.Generator().manual_seed(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        strong, weak = on_cuda.strong_uint8(there, draws), crop_flip(there, draws, 4)
        normalized = on_cuda.strong(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(strong.cpu(), on_cpu.strong_uint8(images, draws))
    assert torch.equal(weak.cpu(), crop_flip(images, draws, 4))
    torch.testing.assert_close(normalized.cpu(), on_cpu.strong(images, draws))
