"""Variants of a pool: published sizes of imbalanced classes, label noise shared by all methods of a seed."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Result, run_folder

from sslpl.data.datasets import digits
from sslpl.data.images import TensorImages
from sslpl.data.variants import (
    ImageSubset,
    PoolVariant,
    add_label_noise,
    apply_variant,
    class_sizes,
    sample_per_class,
    subset_images,
)
from sslpl.seeds import rng
from sslpl.types import Dataset, UserError


def numbered(labels: torch.Tensor, classes: int) -> Dataset:
    """Returns a dataset whose k-th image has the value k."""
    count = len(labels)
    images = TensorImages(torch.arange(count).to(torch.uint8).reshape(count, 1, 1, 1).expand(count, 1, 2, 2))
    names = tuple(map(str, range(classes)))
    return Dataset(images, labels, images, labels, names, (0.5,), (0.5,), False, 0, 0)


def even(classes: int, each: int) -> torch.Tensor:
    return torch.arange(classes * each) % classes


@pytest.mark.parametrize(
    ("classes", "each", "ratio", "images"),
    [
        (10, 5000, 10, 20431), (10, 5000, 50, 13996), (10, 5000, 100, 12406),
        (100, 500, 10, 19573), (100, 500, 100, 10847),
    ],
)  # fmt: skip
def test_long_tails_have_their_published_sizes(classes: int, each: int, ratio: float, images: int) -> None:
    sizes = class_sizes(even(classes, each), classes, "long_tailed", float(ratio))
    assert int(sizes.sum()) == images
    assert (int(sizes[0]), int(sizes[-1])) == (each, each // ratio)


def test_half_of_the_classes_are_small_in_steps() -> None:
    assert class_sizes(even(10, 5000), 10, "stepped", 5000 / 330).tolist() == [5000] * 5 + [330] * 5
    assert class_sizes(even(5, 100), 5, "stepped", 10.0).tolist() == [100] * 3 + [10] * 2
    assert class_sizes(even(1, 100), 1, "stepped", 10.0).tolist() == [100]


@pytest.mark.parametrize("kind", ["long_tailed", "stepped"])
def test_no_class_grows_or_dies_out_but_an_empty_one_stays_empty(kind: str) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((50, 3, 0, 40))])
    assert (
        class_sizes(labels, 4, kind, 1e6).tolist()
        == {
            "long_tailed": [50, 1, 0, 1],
            "stepped": [50, 3, 0, 1],
        }[kind]
    )
    assert class_sizes(labels, 4, kind, 1.0).tolist() == [50, 3, 0, 40]


def test_the_first_of_each_class_are_random_and_ascending() -> None:
    labels = even(4, 25)
    kept = sample_per_class(labels, torch.tensor([25, 3, 0, 1]), rng(0, "imbalance"))
    assert torch.equal(kept, kept.sort().values)
    assert torch.bincount(labels[kept], minlength=4).tolist() == [25, 3, 0, 1]
    more = sample_per_class(labels, torch.tensor([25, 9, 0, 1]), rng(0, "imbalance"))
    assert set(kept.tolist()) < set(more.tolist())
    assert kept.tolist() != sample_per_class(labels, torch.tensor([25, 3, 0, 1]), rng(1, "imbalance")).tolist()


def test_an_imbalanced_pool_is_the_same_for_every_seed_and_its_test_set_is_whole() -> None:
    data = numbered(even(4, 25), 4)
    first, second = (apply_variant(data, PoolVariant("long_tailed", 5.0), seed) for seed in (0, 1))
    assert torch.bincount(first.train_labels).tolist() == [25, 14, 8, 5]
    assert torch.equal(first.train_labels, second.train_labels)
    (images,), (others,) = (list(d.train.batches([torch.arange(len(d.train))])) for d in (first, second))
    assert torch.equal(images, others)
    assert torch.equal(images[:, 0, 0, 0].long() % 4, first.train_labels)  # each image kept its label
    assert first.test is data.test
    assert first.test_labels is data.test_labels
    assert first.true_labels is None


def test_without_a_variant_a_dataset_is_itself() -> None:
    data = numbered(even(4, 25), 4)
    assert apply_variant(data, PoolVariant(), 0) is data


@pytest.mark.parametrize("share", [0.004, 0.3, 1.0])
def test_noise_replaces_a_share_by_other_classes(share: float) -> None:
    labels = even(5, 50)
    noisy = add_label_noise(labels, 5, share, rng(0, "label_noise"))
    assert int((noisy != labels).sum()) == round(share * 250)
    assert set(noisy.tolist()) == set(range(5))
    assert torch.equal(labels, even(5, 50))


def test_noise_prefers_no_class() -> None:
    labels = torch.zeros(40_000, dtype=torch.int64)
    counts = torch.bincount(add_label_noise(labels, 5, 1.0, rng(0, "label_noise")), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 10_000).abs().max() < 5 * (40_000 * 3 / 16) ** 0.5


def test_noise_depends_on_the_seed_and_the_truth_stays() -> None:
    data = numbered(even(4, 25), 4)
    same, again, other = (apply_variant(data, PoolVariant(label_noise=0.2), seed) for seed in (0, 0, 1))
    assert torch.equal(same.train_labels, again.train_labels)
    assert not torch.equal(same.train_labels, other.train_labels)
    assert torch.equal(same.true_labels, data.train_labels)  # type: ignore[arg-type]
    assert torch.equal(same.test_labels, data.test_labels)
    both = apply_variant(same, PoolVariant("stepped", 5.0, 0.1), 0)  # noise upon noise: the truth is still the first
    assert len(both.true_labels) == len(both.train_labels) == len(both.train)  # type: ignore[arg-type]
    (images,) = both.train.batches([torch.arange(len(both.train))])
    assert torch.equal(images[:, 0, 0, 0].long() % 4, both.true_labels)


def test_a_single_class_has_no_wrong_labels() -> None:
    with pytest.raises(UserError, match=r"dataset\.label_noise=0\.1: must be 0"):
        apply_variant(numbered(even(1, 9), 1), PoolVariant(label_noise=0.1), 0)


def test_a_selection_of_any_images_is_that_of_a_tensor() -> None:
    images, index = TensorImages(torch.randint(0, 256, (9, 3, 2, 2), dtype=torch.uint8)), torch.tensor([7, 2, 3])
    batches = [torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    chosen, wrapped = subset_images(images, index), ImageSubset(images, index).to(torch.device("cpu"))
    assert isinstance(chosen, TensorImages)
    assert len(chosen) == len(wrapped) == 3
    assert chosen.shape == wrapped.shape == (3, 2, 2)
    for a, b in zip(chosen.batches(batches), wrapped.batches(batches), strict=True):
        assert torch.equal(a, b)


def test_a_run_with_every_switch_tells_the_noisy_labels(sslpl: Callable[..., Result]) -> None:
    keys = ("dataset.imbalance=stepped", "dataset.imbalance_ratio=3", "dataset.label_noise=0.25")
    initial: dict[str, list[dict[str, str]]] = {}
    for method in ("sslpm", "random"):
        done = sslpl(*TINY, *keys, "budget.initial_pool=balanced", "budget.initial=30", "budget.cycles=2",
                     f"method={method}", f"runtime.output_dir={method}")  # fmt: skip
        assert done.code == 0, done.err
        with (run_folder(Path(method)) / "queries.csv").open() as file:
            initial[method] = [row for row in csv.DictReader(file) if row["cycle"] == "0"]
    assert initial["sslpm"] == initial["random"]
    data = apply_variant(digits("data"), PoolVariant("stepped", 3.0, 0.25), 0)
    told = torch.tensor([int(row["label"]) for row in initial["sslpm"]])
    index = torch.tensor([int(row["index"]) for row in initial["sslpm"]])
    assert torch.equal(told, data.train_labels[index])
    assert torch.bincount(told).tolist() == [3] * 10
    assert not torch.equal(told, data.true_labels[index])  # type: ignore[index]
