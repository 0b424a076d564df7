"""What large pools are clustered and searched with: faiss, on tables that may lie in a file and are never copied whole.

Above LARGE unlabeled images k-means learns its centers from a sample, and k-means++ measures no distance before it is
needed. The number of images alone decides, so that what is chosen never depends on what is installed.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.clustering.k_means import Clusters, drawn
from sslpl.clustering.neighbors import blocks, nearest
from sslpl.types import UserError

LARGE = 75_000  # unlabeled images: CIFAR, Fashion-MNIST and SVHN have fewer
SAMPLE, MOST = 64, 2**18  # images that the centers are learned from, for each of them and in all
STEPS = 25  # of Lloyd's algorithm, at most (faiss's default)
FLAT = 25_000  # above so many points their neighbors are found approximately ...
PROBES = 32  # ... in so many of 4 N^0.5 lists
REFRESH = 64  # choices, or refusals in a row, after which all distances are brought up to date


class GatheredRows:
    """Rows of a table [M, D] at an index [N], of length 1 if they are to be, gathered when they are asked for."""

    def __init__(self, table: Tensor, index: Tensor, unit: bool = False) -> None:
        self.table, self.index, self.unit = table, index.to(table.device), unit
        self.device = table.device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        some = self.table[self.index[rows]]
        return normalize(some) if self.unit else some

    def in_order(self) -> list[Tensor]:
        """All rows in parts, as they lie in the table: to be read through once."""
        order = self.index.argsort()
        return [order[part] for part in blocks(len(self), self.table.shape[1], self.device)]


def is_large(images: int) -> bool:
    """Whether so many unlabeled images are chosen from with what is here."""
    return images > LARGE


def imported_faiss() -> ModuleType:
    """faiss with the threads of torch; UserError with the command where it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"a pool of more than {LARGE:,} images needs faiss here: pip install faiss-cpu") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def sampled_k_means(
    points: GatheredRows, clusters: int, rng: Generator, weight: Tensor | None = None, steps: int = STEPS
) -> Clusters:
    """Clusters points by at most STEPS of k-means on a random sample of them; `weight` [N] above 0 counts them.

    All points go to their nearest center, exactly. The start is random, as faiss has it; a center without points
    gets half of another's.
    """
    faiss, clusters = imported_faiss(), min(clusters, len(points))
    sample = torch.randperm(len(points), generator=rng)[: max(clusters, min(SAMPLE * clusters, MOST))]
    seed = int(torch.randint(2**31 - 1, (), generator=rng))
    learned = points[sample.to(points.device)].cpu()
    origin = learned.mean(dim=0)
    found = faiss.Kmeans(
        learned.shape[1],
        clusters,
        niter=min(steps, STEPS),
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(learned),
    )
    found.train(learned.sub_(origin).numpy(), weights=None if weight is None else weight[sample].float().numpy())
    return assigned(points, (torch.from_numpy(found.centroids) + origin).to(points.device))


def assigned(points: GatheredRows, centers: Tensor) -> Clusters:
    """The clustering of points around given centers [K, D]."""
    distance = torch.empty(len(points), device=points.device)
    label = torch.empty(len(points), dtype=torch.int64, device=points.device)
    origin = centers.mean(dim=0)
    for rows in points.in_order():
        distance[rows], label[rows] = nearest(points[rows], centers, origin)
    return Clusters(centers, label, distance)


def approximate_neighbor_distance(points: Tensor, neighbors: int) -> Tensor:
    """As in `sslpl.clustering.neighbors`; above FLAT points it is approximate which are the nearest."""
    count = min(neighbors, len(points) - 1)
    mean = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    if count == 0:
        return mean
    near = neighbor_rows((points - points.mean(dim=0)).cpu(), count).to(points.device)
    for rows in blocks(len(points), count * points.shape[1], points.device):
        apart = (points[near[rows].clamp(min=0)] - points[rows, None]).double().square().sum(dim=2).sqrt_()
        known = near[rows] >= 0
        mean[rows] = (apart * known).sum(dim=1) / known.sum(dim=1)
    return mean.nan_to_num_(torch.inf)


def neighbor_rows(points: Tensor, count: int) -> Tensor:
    """The nearest others [N, count] of points [N, D], fewer than N, by faiss; -1 where it found too few."""
    faiss, x = imported_faiss(), points.numpy()
    index = faiss.IndexFlatL2(x.shape[1])
    if len(x) > FLAT:
        quantizer, lists = index, int(4 * len(x) ** 0.5)
        index = faiss.IndexIVFFlat(quantizer, x.shape[1], lists)
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(PROBES, lists)
        index.train(x)
    index.add(x)
    found = torch.from_numpy(index.search(x, count + 1)[1])
    own = found == torch.arange(len(x))[:, None]
    own[~own.any(dim=1), -1] = True  # among more copies than it asked for it has not found itself
    return found[~own].view(len(x), count)


def rejection_plus_plus(
    squares: Callable[[Tensor, Tensor], Tensor], images: int, n: int, rng: Generator, first: Tensor
) -> Tensor:
    """Distinct rows [n] drawn as in `sslpl.clustering.k_means.plus_plus` without mass, by rejection sampling.

    `squares` gives the squared distances [R, K] between rows [R] and [K]; `first` is []. A row is drawn by its distance
    to the nearest of the earlier choices and kept with the chance that the later ones leave of it: this is exact, and
    all distances are computed only once in a while, to many choices at a time.
    """
    bound = torch.full((images,), torch.inf, dtype=torch.float64, device=first.device)
    chosen, counted, refused = first[None], 0, 0
    while len(chosen) < n:
        pending = chosen[counted:]
        if counted == 0 or len(pending) >= REFRESH or refused >= REFRESH:
            for part in blocks(images, 1024, bound.device):
                rows = torch.arange(part.start, part.stop, device=bound.device)
                bound[part] = torch.minimum(bound[part], squares(rows, pending).amin(dim=1))
            bound[chosen], counted, refused = 0, len(chosen), 0
            continue
        if not bool(bound.sum() > 0):
            return torch.cat([chosen, random_others(chosen, images, n - len(chosen), rng)])
        draw = torch.rand(2, generator=rng, dtype=torch.float64).to(bound.device)
        row = drawn(bound, draw[:1])
        true = torch.cat([bound[row], squares(row, pending)[0]]).min()
        if bool(draw[1] * bound[row] < true):
            chosen, true, refused = torch.cat([chosen, row]), torch.zeros_like(true), -1
        bound[row], refused = true, refused + 1
    return chosen


def random_others(chosen: Tensor, images: int, count: int, rng: Generator) -> Tensor:
    """So many of the rows that are not chosen yet, at random."""
    order = torch.randperm(images, generator=rng).to(chosen.device)
    return order[~torch.isin(order, chosen)][:count]
