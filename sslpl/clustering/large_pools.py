"""Clustering and neighbor search for large pools, with faiss, on tables that may be in a file and are never copied.

Above LARGE unlabeled images, k-means fits its centers to a sample. Only the number of images decides, so that a
selection never depends on the installed packages.
"""

from types import ModuleType

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.clustering.k_means import Clusters
from sslpl.clustering.neighbors import blocks, nearest
from sslpl.types import UserError

LARGE = 75_000  # unlabeled images: CIFAR, Fashion-MNIST and SVHN have fewer
SAMPLE, MAX_SAMPLE = 64, 2**18  # the images that centers are fitted to: per center, and at most
STEPS = 25  # of Lloyd's algorithm, at most (faiss's default)
FLAT = 25_000  # above this many points the neighbor search is approximate ...
PROBES = 32  # ... and searches this many of the 4 N^0.5 inverted lists


class GatheredRows:
    """The rows [N] of a table [M, D] at an index, gathered on access and normalized if `unit`."""

    def __init__(self, table: Tensor, index: Tensor, unit: bool = False) -> None:
        self.table, self.index, self.unit = table, index.to(table.device), unit
        self.device = table.device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        gathered = self.table[self.index[rows]]
        return normalize(gathered) if self.unit else gathered

    def in_order(self) -> list[Tensor]:
        """Returns all rows in blocks, in the order of the table, for one sequential read."""
        order = self.index.argsort()
        return [order[part] for part in blocks(len(self), self.table.shape[1], self.device)]


def is_large(images: int) -> bool:
    """True if a pool of this many unlabeled images uses the methods for large pools."""
    return images > LARGE


def import_faiss() -> ModuleType:
    """Imports faiss and sets its threads to torch's; UserError with the install command if it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"a pool of more than {LARGE:,} images needs faiss: pip install faiss-cpu") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def sampled_k_means(
    points: GatheredRows, clusters: int, rng: Generator, weight: Tensor | None = None, steps: int = STEPS
) -> Clusters:
    """Clusters points by at most STEPS of k-means on a random sample, weighted by `weight` [N] > 0.

    All points are assigned to their exact nearest center. Initial centers are random points, and an empty cluster
    takes half of another one, as in faiss.
    """
    faiss, clusters = import_faiss(), min(clusters, len(points))
    sample = torch.randperm(len(points), generator=rng)[: max(clusters, min(SAMPLE * clusters, MAX_SAMPLE))]
    seed = int(torch.randint(2**31 - 1, (), generator=rng))
    training = points[sample.to(points.device)].cpu()
    origin = training.mean(dim=0)
    model = faiss.Kmeans(
        training.shape[1],
        clusters,
        niter=min(steps, STEPS),
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(training),
    )
    model.train(training.sub_(origin).numpy(), weights=None if weight is None else weight[sample].float().numpy())
    return assign_to_nearest(points, (torch.from_numpy(model.centroids) + origin).to(points.device))


def assign_to_nearest(points: GatheredRows, centers: Tensor) -> Clusters:
    """Assigns points to their nearest centers [K, D]."""
    distance = torch.empty(len(points), device=points.device)
    assignment = torch.empty(len(points), dtype=torch.int64, device=points.device)
    origin = centers.mean(dim=0)
    for rows in points.in_order():
        distance[rows], assignment[rows] = nearest(points[rows], centers, origin)
    return Clusters(centers, assignment, distance)


def approximate_neighbor_distance(points: Tensor, neighbors: int) -> Tensor:
    """Computes `mean_neighbor_distance` with faiss; above FLAT points the nearest are found approximately."""
    count = min(neighbors, len(points) - 1)
    mean = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    if count == 0:
        return mean
    nearest_rows = neighbor_rows((points - points.mean(dim=0)).cpu(), count).to(points.device)
    for rows in blocks(len(points), count * points.shape[1], points.device):
        distance = (points[nearest_rows[rows].clamp(min=0)] - points[rows, None]).double().square().sum(dim=2).sqrt_()
        found = nearest_rows[rows] >= 0
        mean[rows] = (distance * found).sum(dim=1) / found.sum(dim=1)
    return mean.nan_to_num_(torch.inf)


def neighbor_rows(points: Tensor, count: int) -> Tensor:
    """Finds the nearest neighbors [N, count] of points [N, D] by faiss, count < N; -1 where it finds too few."""
    faiss, x = import_faiss(), points.numpy()
    index = faiss.IndexFlatL2(x.shape[1])
    if len(x) > FLAT:
        quantizer, lists = index, int(4 * len(x) ** 0.5)
        index = faiss.IndexIVFFlat(quantizer, x.shape[1], lists)
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(PROBES, lists)
        index.train(x)
    index.add(x)
    neighbors = torch.from_numpy(index.search(x, count + 1)[1])
    is_self = neighbors == torch.arange(len(x))[:, None]
    is_self[~is_self.any(dim=1), -1] = True  # a point with more than `count` duplicates may not find itself
    return neighbors[~is_self].view(len(x), count)
