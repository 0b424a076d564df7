"""Diversity-based strategies, against brute force and published formulas on small inputs."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from querying import predicting
from torch import Tensor

from sslpl.clustering import neighbors
from sslpl.clustering.k_center import k_center_greedy
from sslpl.clustering.k_means import Clusters, draw_row, k_means, lloyd, means, plus_plus
from sslpl.clustering.neighbors import on_grid
from sslpl.query.badge import badge, gradient_distances
from sslpl.query.bait import bait
from sslpl.query.bait_binary import bait_binary
from sslpl.query.cluster_margin import cluster_margin, smallest_first
from sslpl.query.context import Context, Weights
from sslpl.query.core_set import core_set
from sslpl.query.fisher_selection import (
    binary_covariance,
    class_covariance,
    fisher_information,
    forward_greedy,
    start_selection,
    update_,
)
from sslpl.query.kmeans import kmeans, medoids
from sslpl.query.probcover import greedy_coverage, probcover, pure_cosine
from sslpl.query.scorers import probability_margins
from sslpl.query.selection import round_robin
from sslpl.query.typiclust import typical_rows, typicality, typiclust
from sslpl.types import Predictions, QueryStrategy, UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(images: int, dimensions: int = 4, centers: int = 5, seed: int = 0) -> Tensor:
    rng = seeded(seed)
    places = 5 * torch.randn(centers, dimensions, generator=rng)
    return places[torch.arange(images) % centers] + torch.randn(images, dimensions, generator=rng)


def pool(embedding: Tensor, labeled: int = 0, logits: Tensor | None = None) -> Context:
    """Returns a context whose images 0..labeled-1 are labeled."""
    logits = torch.randn(len(embedding), 3, generator=seeded(9)) if logits is None else logits
    every = Predictions(torch.arange(len(embedding)), logits, embedding, None)
    parts = [Predictions(*(None if v is None else v[part] for v in every)) for part in halves(labeled)]

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        assert weights is None
        assert torch.equal(index, parts[0].index)
        return parts[0]

    seen = predicting(parts[1].logits, parts[1].embedding)
    index = {"unlabeled": parts[1].index, "labeled": parts[0].index, "precomputed": parts[1]}
    return replace(seen, predict=predict, candidates=len(parts[1].index), **index)


def halves(labeled: int) -> tuple[slice, slice]:
    return slice(None, labeled), slice(labeled, None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every blockwise computation use several blocks."""
    monkeypatch.setitem(neighbors.BLOCK, "cpu", 200)


class TestNeighbors:
    def test_nearest_centers(self) -> None:
        points, centers = blobs(53), blobs(7, seed=1)
        every = (points[:, None] - centers).square().sum(dim=2).sqrt()
        distance, center = neighbors.nearest(points, centers)
        torch.testing.assert_close(distance, every.amin(dim=1), atol=1e-3, rtol=1e-4)
        assert torch.equal(center, every.argmin(dim=1))

    def test_copies_are_at_distance_0(self) -> None:
        points = 100 + blobs(5).repeat(3, 1)
        points = points - points.mean(dim=0)
        squares = neighbors.squares_between(points, points[5:6])[:, 0]
        assert (squares == 0).tolist() == [True, *[False] * 4] * 3
        expected = (points.double() - points[0].double()).square().sum(dim=1)
        torch.testing.assert_close(squares, expected, atol=0, rtol=1e-9)

    @pytest.mark.parametrize("count", [1, 3, 52])
    def test_mean_distance_to_the_nearest_others(self, count: int) -> None:
        points = blobs(53)
        every = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
        expected = [sum(sorted(row)[1 : count + 1]) / count for row in every.tolist()]
        found = neighbors.mean_neighbor_distance(points, count)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        assert neighbors.mean_neighbor_distance(points[:1], count).tolist() == [math.inf]


class TestKMeans:
    def test_lloyd_is_that_of_scikit_learn(self) -> None:
        from sklearn.cluster import KMeans

        points = blobs(300, centers=9).double()
        mass = torch.rand(300, generator=seeded(1), dtype=torch.float64) + 0.1
        for weight in (torch.ones_like(mass), mass):
            known = KMeans(9, init=points[:9].numpy(), n_init=1).fit(points.numpy(), sample_weight=weight.numpy())
            found = lloyd(points, points[:9], weight, 100)
            assert found.assignment.tolist() == known.labels_.tolist()
            torch.testing.assert_close(found.centers, torch.from_numpy(known.cluster_centers_))
            far = (points - found.centers[found.assignment]).square().sum(dim=1).sqrt()
            torch.testing.assert_close(found.distance, far)

    def test_a_center_without_points_stays(self) -> None:
        points, centers = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [9.0]])
        found = means(points, torch.tensor([0, 0]), torch.ones(2), centers)
        assert found.tolist() == [[0.5], [9.0]]

    @pytest.mark.parametrize("refresh", [1, 3, 64])
    def test_the_start_is_drawn_by_mass_times_squared_distance(
        self, refresh: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second and third of four points against the chances of k-means++."""
        monkeypatch.setattr("sslpl.clustering.k_means.REFRESH", refresh)
        monkeypatch.setattr("sslpl.clustering.k_means.PER_ROW", 1)
        points, mass = torch.tensor([0.0, 1, 3, 7]).double(), torch.tensor([1.0, 2, 1, 0.5]).double()
        apart = (points[:, None] - points).square()
        rng, seen = seeded(), torch.zeros(2, 4, dtype=torch.float64)
        for _ in range(2000):
            rows = plus_plus(lambda rows, others: apart[rows][:, others], mass, 3, rng, torch.tensor([0]))
            seen[torch.arange(2), rows[1:]] += 1 / 2000
        weight = apart[0] * mass
        expected = torch.stack([weight / weight.sum(), torch.zeros(4, dtype=torch.float64)])
        for second in range(1, 4):
            left = torch.minimum(apart[0], apart[second]) * mass
            expected[1] += expected[0, second] * left / left.sum()
        torch.testing.assert_close(seen, expected, atol=0.04, rtol=0)

    def test_copies_are_drawn_last_and_only_once(self) -> None:
        points = torch.tensor([0.0, 0, 0, 5, 5, 9])
        apart = (points[:, None] - points).square()
        for seed in range(20):
            rows = plus_plus(lambda rows, others: apart[rows][:, others], torch.ones(6), 6, seeded(seed)).tolist()
            assert sorted(rows) == list(range(6))
            assert {points[row].item() for row in rows[:3]} == {0, 5, 9}

    def test_the_last_copies_are_drawn_by_mass(self) -> None:
        mass, first, rng = torch.tensor([1.0, 1, 3]), torch.tensor([0]), seeded()
        squares = lambda rows, others: torch.zeros(len(rows), len(others))  # noqa: E731
        heaviest = [plus_plus(squares, mass, 2, rng, first)[1].item() == 2 for _ in range(1000)]
        assert sum(heaviest) / 1000 == pytest.approx(0.75, abs=0.05)

    @pytest.mark.parametrize(("draw", "row"), [(0.0, 1), (0.24, 1), (0.26, 3), (1 - 2.0**-53, 3)])
    def test_rows_of_weight_0_are_not_drawn(self, draw: float, row: int) -> None:
        weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
        assert draw_row(weight, torch.tensor([draw], dtype=torch.float64)).tolist() == [row]

    def test_clusters_are_found_far_from_the_origin(self) -> None:
        points = blobs(100, centers=4, seed=3) * torch.tensor([1.0, 1, 1, 0]) + 1e4
        found = k_means(points, 4, seeded())
        near = torch.cdist(points.double(), found.centers.double()).argmin(dim=1)
        assert torch.equal(found.assignment, near)

    def test_the_nearest_image_stands_for_a_centroid(self) -> None:
        label, distance = torch.tensor([0, 2, 0, 2, 0]), torch.tensor([3.0, 1, 2, 1, 2])
        assert medoids(Clusters(torch.zeros(4, 1), label, distance)).tolist() == [2, 1]
        embedding = blobs(60, centers=4)
        assert len(set((kmeans(pool(embedding), 4, seeded()).index % 4).tolist())) == 4

    def test_a_prefilter_keeps_the_lowest_margins(self) -> None:
        seen = pool(blobs(80))
        low = probability_margins(seen.predictions.logits).argsort()[:20].tolist()
        for weighted in (False, True):
            assert set(kmeans(seen, 10, seeded(), weighted=weighted, prefilter=2).index.tolist()) <= set(low)


class TestCoreSet:
    def test_each_is_the_farthest_from_all_before(self) -> None:
        embedding = blobs(70)
        every = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
        centers, radius = list(range(10)), []
        for _ in range(20):
            far = every[centers].amin(dim=0)
            centers.append(int(far.argmax()))
            radius.append(far.max().item())
        picked = core_set(pool(embedding, labeled=10), 20, seeded())
        assert picked.index.tolist() == centers[10:]
        torch.testing.assert_close(picked.score, torch.tensor(radius).double(), atol=1e-3, rtol=1e-4)

    def test_copies_come_last(self) -> None:
        points = torch.tensor([[0.0], [4.0], [4.0], [10.0], [10.0]])
        rows, radius = k_center_greedy(points[:1], points, 5, seeded())
        assert radius.tolist() == [10, 4, 0, 0, 0]
        assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]


class TestBadge:
    def test_distances_of_explicit_gradients(self) -> None:
        logits, embedding = torch.randn(40, 5, generator=seeded()), blobs(40)
        probability = logits.double().softmax(dim=1)
        residual = probability - torch.nn.functional.one_hot(logits.argmax(dim=1), 5)
        gradient = torch.einsum("nc,nd->ncd", residual, embedding.double()).flatten(1)
        norm, squares = gradient_distances(Predictions(torch.arange(40), logits, embedding, None))
        torch.testing.assert_close(norm, gradient.square().sum(dim=1), rtol=1e-5, atol=1e-5)
        expected = (gradient[:, None] - gradient).square().sum(dim=2).float()
        torch.testing.assert_close(squares(torch.arange(40), torch.arange(40)).float(), expected, rtol=1e-4, atol=1e-4)

    def test_gradients_are_those_of_the_last_layer(self) -> None:
        embedding = blobs(6)
        head = torch.randn(5, 4, generator=seeded(1)).requires_grad_()
        logits = embedding @ head.T
        losses = torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1), reduction="none")
        gradient = [torch.autograd.grad(loss, head, retain_graph=True)[0] for loss in losses]
        norm, _ = gradient_distances(Predictions(torch.arange(6), logits.detach(), embedding, None))
        torch.testing.assert_close(norm.float(), torch.stack(gradient).square().sum(dim=(1, 2)))

    def test_the_longest_gradient_is_first(self) -> None:
        seen = pool(blobs(40))
        norm, _ = gradient_distances(seen.predictions)
        assert {badge(seen, 5, seeded(seed)).index[0].item() for seed in range(5)} == {int(norm.argmax())}


class TestRotation:
    def test_taking_turns(self) -> None:
        cluster = torch.tensor([0, 0, 1, 0, 2, 1])
        rows = round_robin(cluster, torch.tensor([2, 0, 1]))
        assert rows.tolist() == [2, 4, 0, 5, 1, 3]

    def test_the_smallest_cluster_first_and_equal_ones_in_random_order(self) -> None:
        cluster = torch.tensor([3, 3, 3, 1, 0, 0])
        orders = {tuple(cluster[smallest_first(cluster, seeded(seed))].tolist()) for seed in range(5)}
        assert orders == {(1, 0, 3, 0, 3, 3)}
        cluster = torch.tensor([3, 3, 1, 1])
        orders = {tuple(cluster[smallest_first(cluster, seeded(seed))].tolist()) for seed in range(9)}
        assert orders == {(1, 3, 1, 3), (3, 1, 3, 1)}

    def test_cluster_margin_by_hand(self) -> None:
        """12 of 16 images are uncertain, in clusters of 6, 4 and 2; one of the certain ones joins each of the first."""
        place = [0.0] * 6 + [50.0] * 4 + [90.0] * 2 + [0.0, 50.0, 50.0, 50.0]
        embedding = torch.tensor(place)[:, None] + torch.rand(16, 1, generator=seeded())
        logits = torch.zeros(16, 3)
        logits[:, 0] = torch.tensor([0.1] * 12 + [5.0] * 4) + torch.rand(16, generator=seeded(1)) / 20
        seen = replace(pool(embedding, logits=logits), candidates=16)
        chosen = set()
        for seed in range(8):
            picked = cluster_margin(seen, 6, seeded(seed), margin_factor=2, cluster_size=5)
            assert [round(place[i] / 45) for i in picked.index.tolist()] == [2, 1, 0, 2, 1, 0]
            chosen |= set(picked.index.tolist())
        assert chosen == set(range(12))
        torch.testing.assert_close(picked.score, 1 - probability_margins(logits)[picked.index])

    def test_typicality_by_explicit_loops(self) -> None:
        points, cluster = blobs(50), torch.arange(50) % 7 * (torch.arange(50) > 9)
        cluster[-1] = 7
        found = typicality(points, cluster, 4)
        for i in range(49):
            others = [j for j in range(50) if j != i and cluster[j] == cluster[i]]
            far = sorted((points[i] - points[j]).double().norm().item() for j in others)
            count = min(4, (len(others) + 1) // 2)
            assert found[i].item() == pytest.approx(1 / (sum(far[:count]) / count + 1e-5), rel=1e-4)
        assert found[-1] == 0

    def test_clusters_without_labels_first_then_large_ones_and_small_ones_last(self) -> None:
        cluster = torch.tensor([0] * 6 + [1] * 7 + [2] * 9 + [3] * 2)
        typical = torch.rand(24, generator=seeded()).double()
        rows = typical_rows(cluster, typical, torch.tensor([0, 0, 1, 0]), 5)
        assert cluster[rows].tolist() == [1, 0, 2] * 6 + [1, 2, 2, 2] + [3, 3]
        for name in range(4):
            own = typical[rows[cluster[rows] == name]]
            assert torch.equal(own, own.sort(descending=True).values)

    def test_typiclust_asks_for_what_no_label_covers(self) -> None:
        rng = seeded(2)
        angle = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat_interleave(torch.tensor([3, 20, 8, 12]))
        angle = angle + 0.01 * torch.randn(len(angle), generator=rng)
        length = 1 + torch.rand(len(angle), generator=rng)
        embedding = torch.stack([angle.cos(), angle.sin()], dim=1) * length[:, None]
        picked = typiclust(pool(embedding, labeled=3), 3, seeded(), max_clusters=4)
        expected = []
        for part in (slice(3, 23), slice(31, 43), slice(23, 31)):
            unit = torch.nn.functional.normalize(embedding[part])
            expected.append(part.start + int(typicality(unit, torch.zeros(len(unit)).long(), 20).argmax()))
        assert picked.index.tolist() == expected
        assert picked.score.isfinite().all()


class TestProbCover:
    def brute_force(self, points: Tensor, labeled: int, delta: float, n: int) -> tuple[list[int], list[int]]:
        near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") < delta
        covered, chosen, gains = near[:labeled].any(dim=0), [], []
        for _ in range(n):
            gain = (near & ~covered).sum(dim=1)
            gain[[*range(labeled), *chosen]] = -1
            chosen.append(int(gain.argmax()))
            gains.append(int(gain.max()))
            covered |= near[chosen[-1]]
        return chosen, gains

    @pytest.mark.parametrize(("labeled", "delta"), [(5, 0.1), (5, 0.4), (1, 1.0), (5, 3.0)])
    def test_coverage_by_brute_force(self, labeled: int, delta: float) -> None:
        points = on_grid(blobs(60 + labeled, dimensions=3))
        picked = probcover(pool(points, labeled), 60, seeded(), delta=delta)
        assert picked.score.tolist() == self.brute_force(points, labeled, delta, 60)[1]
        assert sorted(picked.index.tolist()) == list(range(labeled, 60 + labeled))

    def test_choices_by_brute_force_where_no_two_are_equal(self) -> None:
        angle = torch.tensor([0.0] * 7 + [1.0] * 5 + [2.0] * 3 + [3.0])
        spread = torch.cat([torch.linspace(-0.1, 0.1, count) for count in (7, 5, 3, 1)])
        points = torch.stack([(angle + spread).cos(), (angle + spread).sin()], dim=1).double()
        chosen, _ = self.brute_force(points, 0, 0.12, 4)
        assert chosen == [3, 9, 13, 15]
        rows, gain = greedy_coverage(on_grid(points), torch.zeros(16, dtype=torch.bool), 1 - 0.12**2 / 2, 4)
        assert rows.tolist() == chosen
        assert gain.tolist() == [7, 5, 3, 1]

    def test_what_follows_full_coverage_is_random(self) -> None:
        seen = pool(blobs(30), labeled=1)
        orders = {tuple(probcover(seen, 8, seeded(seed), delta=3.0).index.tolist()) for seed in range(5)}
        assert len(orders) == 5

    def test_an_image_covers_itself_and_its_copies(self) -> None:
        points = blobs(10, dimensions=512).repeat(3, 1)
        picked = probcover(pool(points, labeled=1), 12, seeded(), delta=1e-6)
        assert picked.score.tolist() == [3] * 9 + [0] * 3

    @pytest.mark.parametrize("purity", [0.5, 0.95, 1.0])
    def test_the_radius_is_the_largest_pure_enough(self, purity: float) -> None:
        points, label = on_grid(blobs(60, dimensions=3)), torch.randint(3, (60,), generator=seeded()) // 2
        cosine = points @ points.T

        def share(threshold: float) -> float:
            return ((cosine <= threshold) | (label == label[:, None])).all(dim=1).double().mean().item()

        found = pure_cosine(points, label, purity)
        assert share(found) >= purity
        assert all(share(c) < purity for c in cosine.flatten().tolist() if c < found)
        assert pure_cosine(points, torch.zeros(60), purity) == -1


def one_hot_covariance(logits: Tensor) -> Tensor:
    """diag(p) - p p' [N, C, C]."""
    p = logits.double().softmax(dim=1)
    return torch.diag_embed(p) - torch.einsum("nc,nd->ncd", p, p)


class TestBait:
    def objective(
        self, seen: Context, n: int, covariance: Callable[[Tensor], Tensor], regularization: float, chosen: list[int]
    ) -> float:
        """tr(M^-1 F) from the formulas of the docstrings, with the Kronecker products formed."""

        def information(predictions: Predictions) -> Tensor:
            pairs = zip(covariance(predictions.logits), predictions.embedding.double(), strict=True)
            return torch.stack([torch.kron(k, torch.outer(h, h)) for k, h in pairs])

        unlabeled, labeled = information(seen.predictions), information(seen.labeled_predictions)
        fisher, total = torch.cat([unlabeled, labeled]).mean(dim=0), len(labeled) + n
        rows = torch.searchsorted(seen.unlabeled, torch.tensor(chosen, dtype=torch.int64))
        matrix = (labeled.sum(dim=0) + n * unlabeled[rows].sum(dim=0)) / total
        matrix.diagonal().add_(regularization)
        return float((torch.linalg.inv(matrix) @ fisher).trace())

    @pytest.mark.parametrize("regularization", [1.0, 0.01])
    @pytest.mark.parametrize(("strategy", "covariance"), [(bait, one_hot_covariance), (bait_binary, binary_covariance)])
    def test_each_step_is_the_best_as_computed_directly(
        self, strategy: QueryStrategy, covariance: Callable[[Tensor], Tensor], regularization: float
    ) -> None:
        seen, n = pool(blobs(30), labeled=6), 5
        objective = partial(self.objective, seen, n, covariance, regularization)
        chosen: list[int] = []
        values = [objective(chosen)]
        for _ in range(2 * n):
            chosen = min(([*chosen, i] for i in seen.unlabeled.tolist() if i not in chosen), key=objective)
            values.append(objective(chosen))
        assert all(after < before for before, after in pairwise(values))
        for _ in range(n):
            chosen = min(([j for j in chosen if j != i] for i in chosen), key=objective)
        picked = strategy(seen, n, seeded(), regularization=regularization)
        assert sorted(picked.index.tolist()) == sorted(chosen)

    def test_the_state_after_a_step_is_that_of_a_fresh_start(self) -> None:
        seen = pool(blobs(20))
        points, covariance = seen.predictions.embedding.double(), class_covariance(seen.predictions.logits)
        fisher = fisher_information(points, covariance) / 20
        size = len(fisher)
        state = start_selection(points, covariance, fisher, torch.eye(size, dtype=torch.float64))
        before = copy.deepcopy(state)
        rows = forward_greedy(state, 6)
        matrix = torch.eye(size, dtype=torch.float64) + fisher_information(points[rows], covariance[rows])
        fresh = start_selection(points, covariance, fisher, torch.linalg.inv(matrix))
        for updated, computed in zip(state, fresh, strict=True):
            torch.testing.assert_close(updated, computed)
        for row in rows:
            update_(state, row[None], -1)
        for updated, computed in zip(state, before, strict=True):
            torch.testing.assert_close(updated, computed)

    @pytest.mark.parametrize("classes", [1, 2, 5])
    def test_the_covariance_is_that_of_the_gradients(self, classes: int) -> None:
        """The mean of the squared gradients of the log-likelihood over the labels that the model gives itself."""
        logits = torch.randn(4, classes, generator=seeded(), dtype=torch.float64)
        p, one_hot = logits.softmax(dim=1), torch.eye(classes, dtype=torch.float64)
        expected = torch.stack(
            [sum(q[c] * torch.outer(one_hot[c] - q, one_hot[c] - q) for c in range(classes)) for q in p]
        )
        torch.testing.assert_close(one_hot_covariance(logits), expected)
        reduced = class_covariance(logits)
        assert reduced.shape == (4, max(1, classes - 1), max(1, classes - 1))
        spectrum, full = torch.linalg.eigvalsh(reduced), torch.linalg.eigvalsh(expected)
        torch.testing.assert_close(spectrum, full[:, -reduced.shape[1] :])

    def test_what_needs_too_much_memory(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = pool(blobs(30), labeled=6)
        binary = bait_binary(seen, 5, seeded()).index.tolist()
        assert bait(seen, 5, seeded(), memory_gib=1e-6).index.tolist() == binary
        line = "sslpl: bait: the exact form needs 0.0 GiB, more than query.memory_gib=1e-06: uses the binary form"
        assert capfd.readouterr().err == f"{line} (query=bait_binary)\n"
        bait(seen, 5, seeded())
        assert capfd.readouterr().err == ""
        monkeypatch.setattr(sys.modules["sslpl.query.bait"], "free_memory", lambda _: 0)
        with pytest.raises(UserError, match=r"^query.memory_gib=8: BAIT needs .* GiB, and 0.0 GiB are free on cpu; "):
            bait(seen, 5, seeded())
