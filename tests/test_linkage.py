"""Complete linkage in rounds: the partitions of scikit-learn and SciPy, and valid ones for tied distances."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import sslpl.clustering.linkage as linkage_module
import sslpl.clustering.linkage_rounds as rounds_module
from sslpl.clustering.linkage import complete_linkage, complete_linkage_bytes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def embeddings(n: int, d: int, seed: int, classes: int = 20) -> Tensor:
    """Returns points like a ReLU network's embeddings: nonnegative, clustered by class, with some duplicates."""
    rng = np.random.default_rng(seed)
    means = 0.7 * rng.normal(size=(classes, d))
    points = (means[rng.integers(0, classes, n)] + 0.5 * rng.normal(size=(n, d)) - 0.3).clip(0)
    points[rng.integers(0, n, n // 50)] = points[rng.integers(0, n, n // 50)]
    return torch.from_numpy(points.astype(np.float32))


def assert_clusters(labels: Tensor, clusters: int) -> None:
    """Checks that the labels are 0..clusters-1, numbered in order of appearance."""
    values, first = np.unique(labels.cpu().numpy(), return_index=True)
    assert labels.dtype == torch.long
    assert values.tolist() == list(range(clusters))
    assert (np.diff(first) > 0).all()


def diameters(distance: np.ndarray, labels: np.ndarray) -> list[float]:
    return [distance[np.ix_(labels == k, labels == k)].max() for k in range(labels.max() + 1)]


def reachable(distance: np.ndarray, clusters: int) -> set[frozenset[frozenset[int]]]:
    """Enumerates the partitions that result from any order of tied merges."""
    states = {frozenset(frozenset([i]) for i in range(len(distance)))}
    for _ in range(len(distance) - clusters):
        states = {merged for state in states for merged in lowest_merges(distance, state)}
    return states


def lowest_merges(distance: np.ndarray, state: frozenset[frozenset[int]]) -> list[frozenset[frozenset[int]]]:
    parts = sorted(state, key=min)
    height = {(a, b): distance[np.ix_(sorted(a), sorted(b))].max() for i, a in enumerate(parts) for b in parts[:i]}
    lowest = min(height.values())
    return [state - {a, b} | {a | b} for (a, b), h in height.items() if h <= lowest * (1 + 1e-12)]


def partition(labels: Tensor) -> frozenset[frozenset[int]]:
    return frozenset(frozenset((labels == k).nonzero()[:, 0].tolist()) for k in labels.unique())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(60))
def test_same_partition_as_sklearn(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 400)), int(rng.integers(1, 40))
    clusters = int(rng.integers(1, n + 1))
    points = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-8, 8)
    points = points.astype(np.float32) if seed % 2 else points + points.std() * rng.normal() * 1000
    labels = complete_linkage(torch.from_numpy(points).to(device), clusters)
    expected = AgglomerativeClustering(n_clusters=clusters, linkage="complete").fit_predict(points)
    assert_clusters(labels, clusters)
    assert labels.device.type == device
    assert adjusted_rand_score(expected, labels.cpu().numpy()) == 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_network_embeddings(device: str) -> None:
    points = embeddings(3000, 64, seed=0)
    tree = linkage(points.double().numpy(), "complete")
    for clusters in (2, 17, 300, 2500):
        labels = complete_linkage(points.to(device), clusters)
        assert_clusters(labels, clusters)
        expected = fcluster(tree, clusters, "maxclust")
        assert adjusted_rand_score(expected, labels.cpu().numpy()) == 1.0


@pytest.mark.parametrize("seed", range(40))
def test_tied_merges_in_some_valid_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    grid = rng.integers(0, 3, size=(n, int(rng.integers(1, 3)))).astype(np.float64)
    distance = squareform(pdist(grid))
    for clusters in range(1, n + 1):
        for scale in (1.0, 0.1):  # exact in float32, and not
            labels = complete_linkage(torch.from_numpy(grid * scale), clusters)
            assert_clusters(labels, clusters)
            assert partition(labels) in reachable(distance, clusters)


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 255])
@pytest.mark.parametrize("name", ["line", "plane", "bits", "unit vectors", "growing steps"])
def test_many_ties_end_soon_and_validly(name: str, scale: float) -> None:
    points = {
        "line": torch.arange(1000.0)[:, None],
        "plane": torch.tensor(list(product(range(30), range(30))), dtype=torch.float32),
        "bits": torch.tensor(list(product(range(2), repeat=9)), dtype=torch.float32),
        "unit vectors": torch.eye(150),
        "growing steps": torch.arange(600.0)[:, None] ** 1.1,
    }[name] * scale
    distance = squareform(pdist(points.double().numpy()))
    for clusters in (1, 2, 40, 100):
        labels = complete_linkage(points, clusters)
        assert_clusters(labels, clusters)
        largest = max(diameters(distance, labels.numpy()))
        if clusters > 1:  # after the last merge no two clusters are nearer than the highest merge
            assert lowest_union(distance, labels.numpy()) >= largest * (1 - 1e-9)


def lowest_union(distance: np.ndarray, labels: np.ndarray) -> float:
    members = [labels == k for k in range(labels.max() + 1)]
    rows = np.stack([distance[mask].max(0) for mask in members])
    union = np.stack([rows[:, mask].max(1) for mask in members])
    np.fill_diagonal(union, np.inf)
    return float(union.min())


def test_near_ties_beyond_float32() -> None:
    gap = 1.0 + 2.0**-30 * torch.randperm(200, generator=torch.Generator().manual_seed(0)).double()
    points = torch.zeros(400, 3, dtype=torch.float64)
    points[:, 0] = 3.0 * torch.arange(200).repeat_interleave(2)
    points[1::2, 1] = gap
    for clusters in (399, 300, 201):
        labels = complete_linkage(points, clusters)
        merged = labels[::2] == labels[1::2]
        assert torch.equal(merged, gap.argsort().argsort() < 400 - clusters)


def test_far_outlier_and_offset() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 5)) * 1e-3 + 1e3
    points[7] = 1e6
    expected = AgglomerativeClustering(n_clusters=40, linkage="complete").fit_predict(points)
    labels = complete_linkage(torch.from_numpy(points), 40).numpy()
    assert adjusted_rand_score(expected, labels) == 1.0


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_scales(scale: float) -> None:
    points = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(complete_linkage(points * scale, 9), complete_linkage(points, 9))


def test_copies() -> None:
    points = torch.tensor([[1.0], [2.0], [1.0], [-0.0], [0.0], [1.0]])
    assert complete_linkage(points, 3).tolist() == [0, 1, 0, 2, 2, 0]
    assert complete_linkage(points, 2).tolist() in ([0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0])
    assert complete_linkage(points, 5).tolist() == [0, 1, 2, 3, 4, 0]
    for clusters in range(1, 51):
        assert_clusters(complete_linkage(torch.ones(50, 3), clusters), clusters)


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (2, 1), (2, 2), (9, 9), (9, 1)])
def test_smallest_and_largest_numbers(n: int, clusters: int) -> None:
    labels = complete_linkage(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), clusters)
    assert labels.tolist() == (list(range(n)) if clusters > 1 else [0] * n)


@pytest.mark.parametrize("clusters", [0, -1, 6])
def test_impossible_numbers_of_clusters(clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"\[5, 3\] into {clusters} clusters"):
        complete_linkage(torch.zeros(5, 3), clusters)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_points_that_are_not_finite(value: float) -> None:
    points = torch.zeros(5, 3)
    points[2, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        complete_linkage(points, 2)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(linkage_module, "free_memory", lambda _: 2**20)
    with pytest.raises(MemoryError, match=r"n = 50 .* GiB.* GiB are free.*lower budget\.candidates"):
        complete_linkage(points, 5)
    monkeypatch.setattr(linkage_module, "free_memory", lambda _: complete_linkage_bytes(50, 3))
    assert_clusters(complete_linkage(points, 5), 5)


def test_memory_is_reckoned_and_measured() -> None:
    assert 2.5e9 < complete_linkage_bytes(25_000, 512) < 3.5e9
    assert 0 < linkage_module.free_memory(torch.device("cpu")) < 2**60


def test_repeats_exactly_and_follows_the_points() -> None:
    points = embeddings(500, 8, seed=3).round(decimals=1)  # many ties
    labels = complete_linkage(points, 50)
    assert torch.equal(labels, complete_linkage(points, 50))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    back = torch.empty_like(labels).scatter(0, order, complete_linkage(points[order], 50))
    assert partition(back) == partition(labels)


def test_block_sizes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = embeddings(600, 16, seed=4)
    expected = complete_linkage(points, 30)
    for living in (0.0, 0.5, 1.0):
        monkeypatch.setattr(rounds_module, "MIN_ALIVE_SHARE", living)
        monkeypatch.setattr(rounds_module, "MATRIX_PARTS", 600)
        monkeypatch.setattr(rounds_module, "CHUNK", {"cpu": 1000, "cuda": 1000})
        monkeypatch.setattr(rounds_module, "ROWS_PER_BLOCK", {"cpu": 77, "cuda": 77})
        assert torch.equal(complete_linkage(points, 30), expected)
