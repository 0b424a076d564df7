"""Agreement of strategies with their authors' code, on the cases of strategy_cases.py; the values are numbers alone."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from querying import context
from strategy_cases import SEEDS, Case, case_context, random_case
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from sslpl.calibration import calibrated_temperature
from sslpl.clustering import neighbors
from sslpl.clustering.large_pools import GatheredRows
from sslpl.clustering.neighbors import on_grid
from sslpl.query import (
    class_stratified,
    core_set,
    entropy,
    margin,
    max_herding,
    predicted_loss,
    refine,
    score_then_select,
    tcm,
    top,
    typiclust,
    uherding,
)
from sslpl.query.active_ft import CentroidRecipe, moved_centroids, nearest_unused
from sslpl.query.class_stratified import (
    class_log_scores,
    drawn_quotas,
    highest_of_each_class,
    scheduled_beta,
    taken_in_turn,
)
from sslpl.query.context import Weights, needs
from sslpl.query.linear_probe import fit_linear_probe, with_bias
from sslpl.query.scorers import class_entropy
from sslpl.query.uherding import head_temperature, smallest_distance
from sslpl.types import Predictions, QueryContext, UserError

FOLDER = Path(__file__).parent / "data" / "strategies"


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_cases_are_those_of_the_stored_values() -> None:
    sums = [
        [getattr(random_case(seed), key).double().sum().item() for key in ("embedding", "logits")] for seed in SEEDS
    ]
    np.testing.assert_allclose(sums, stored("cases")["checksum"], rtol=1e-12)


class TestMaxHerding:
    """The values were computed by BorealisAI/uherding (75299cd), `Herding`, in float64 and over all images."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_images_in_the_same_order(self, seed: int) -> None:
        selection = max_herding(case_context(random_case(seed)), random_case(seed).n, generator(seed))
        assert selection.index.tolist() == stored("max_herding")[str(seed)].tolist()

    @pytest.mark.parametrize("block", [200, 1 << 22])
    def test_gains_are_those_of_the_definition(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(neighbors.BLOCK, "cpu", block)
        case = random_case(8)
        selection = max_herding(case_context(case), 12, generator(), radius=0.5)
        unit = case.embedding.double() / case.embedding.double().norm(dim=1, keepdim=True)
        kernel = torch.exp(-((torch.cdist(unit[case.labeled :], unit) / 0.5) ** 2))
        centers = list(range(case.labeled))
        for index, score in zip(selection.index.tolist(), selection.score.tolist(), strict=True):
            before = kernel[:, centers].amax(dim=1)
            gains = (kernel - before[:, None]).clamp(min=0).mean(dim=0)
            assert score == pytest.approx(gains[index].item(), rel=1e-5)
            assert gains[index] >= gains.amax() - 1e-8
            centers.append(index)

    def test_copies_of_what_is_covered_come_last(self) -> None:
        case = random_case(7)
        twice = Case(*(torch.cat([part, part]) for part in case[:3]), case.labeled, case.n)
        everything = len(twice.embedding) - twice.labeled
        selection = max_herding(case_context(twice), everything, generator())
        distinct = len(case.embedding) - case.labeled
        assert (selection.score[:distinct] > 0).all()
        assert (selection.score[distinct:] == 0).all()
        assert len({index % len(case.embedding) for index in selection.index[:distinct].tolist()}) == distinct


class TestUHerding:
    """The values were computed by BorealisAI/uherding (75299cd), `UHerding` with its adaptive radius and
    `obtain_temperature`, in float64 and over all images; uncertainty and temperature vary with the case."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_images_in_the_same_order(self, seed: int) -> None:
        case, answers = random_case(seed), stored("uherding")
        options = {
            "uncertainty": ("margin", "entropy", "least_confidence")[seed % 3],
            "temperature": (1.0, 1.7, 4.0)[seed // 3 % 3],
        }
        selection = uherding(case_context(case), case.n, generator(seed), **options)
        assert selection.index.tolist() == answers[str(seed)].tolist()
        labeled = on_grid(case.embedding[: case.labeled])
        assert smallest_distance(labeled) == pytest.approx(float(answers[f"{seed}_radius"]), rel=1e-6)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_temperature(self, seed: int) -> None:
        case = random_case(seed)
        logits = case.logits[:300].double() * (1 + seed % 7)
        temperature = calibrated_temperature(logits, case.classes[:300])
        assert temperature == pytest.approx(float(stored("uherding")[f"{seed}_temperature"]))

    def test_the_radius_is_the_distance_of_the_two_nearest_different_images(self) -> None:
        points = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]).double()
        assert smallest_distance(points) == pytest.approx((0.36 + 0.04) ** 0.5)
        assert smallest_distance(points[:2]) == smallest_distance(points[:1]) == smallest_distance(points[:0]) == 1.0

    def test_the_head_is_at_its_minimum(self) -> None:
        case = random_case(14)
        embedding, labels = case.embedding[:150], case.classes[:150]
        weight = fit_linear_probe(embedding, labels, 3, weight_decay=5e-4, steps=100).requires_grad_()
        (cross_entropy(with_bias(embedding) @ weight.T, labels) + 5e-4 / 2 * weight.square().sum()).backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) < 1e-4

    def test_wrong_labels_among_those_held_out_raise_the_temperature(self) -> None:
        case = random_case(19)
        seen = case_context(case)
        last = torch.arange(case.labeled) >= 0.7 * case.labeled
        wrong = torch.where(last, (seen.labels + 1) % seen.num_classes, seen.labels)
        assert head_temperature(replace(seen, labels=wrong), 0.3) > head_temperature(seen, 0.3)
        assert head_temperature(seen, 0.0) == 1.0

    def test_certain_images_do_not_count(self) -> None:
        case = random_case(17)
        certain = torch.full((len(case.embedding), 2), 40.0)
        certain[:, 1] = -40
        certain[case.labeled + 3] = 0
        selection = uherding(case_context(case._replace(logits=certain)), 2, generator(), radius=1e-3, temperature=1.0)
        assert selection.index[0] == case.labeled + 3
        assert selection.score.tolist() == pytest.approx([1 / (len(case.embedding) - case.labeled), 0])


class TestTCM:
    """The values were computed by dhuseljic/dal-toolbox, `TCM` with its TypiClust, on unit embeddings.

    Its k-means is replaced by the stored clusters, since random numbers decide them. Within a cluster its TypiClust
    averages squared distances, as the code of Hacohen et al. 2022 does and this framework does not: the clusters are
    compared, not the images. It has no smallest size of a cluster.
    """

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_clusters_in_the_first_cycles(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        case, answers = random_case(seed), stored("tcm")
        cluster = torch.from_numpy(answers[f"{seed}_clusters"]).long()

        def stored_clusters(labeled: Tensor, points: GatheredRows, *_: object) -> tuple[Tensor, Tensor]:
            return cluster[: case.labeled], cluster[case.labeled :][points.index]

        monkeypatch.setattr(import_module("sslpl.query.typiclust"), "unit_clusters", stored_clusters)
        monkeypatch.setattr(import_module("sslpl.query.tcm"), "typiclust", partial(typiclust, min_cluster_size=0))
        selection = tcm(replace(case_context(case), cycle=2), case.n, generator(seed))
        theirs = torch.from_numpy(answers[f"{seed}_typiclust"]).long()
        assert cluster[selection.index].tolist() == cluster[theirs].tolist()

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_images_in_the_later_cycles(self, seed: int) -> None:
        case = random_case(seed)
        selection = tcm(replace(case_context(case), cycle=3), case.n, generator(seed))
        assert selection.index.tolist() == stored("tcm")[f"{seed}_margin"].tolist()


class TestRefine:
    """The values were computed by dhuseljic/dal-toolbox, `Refine` with margin and, if images are labeled, core-set.

    Its random parts are drawn here as numpy drew them there. Its herding is not compared: it subtracts from a kernel
    value the coverage of the candidate, where the definition (Bae et al.) has that of the covered image, and it weights
    by the candidate's uncertainty.
    """

    @staticmethod
    def options(seed: int) -> dict[str, int | float]:
        rng = np.random.RandomState(seed)
        choices = {
            "depth": [1, 2, 3],
            "batches": [3, 6, 9],
            "subset": [100, 300, 1000],
            "alpha": [0.2, 0.4, 0.8],
            "max_pool": [60, 200, 10000],
        }
        chosen = {name: rng.choice(values).item() for name, values in choices.items()}
        return chosen if chosen["depth"] == 1 else chosen | {"max_pool": 10_000}  # numpy leaves its draws unsorted

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_images_in_the_same_order(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        numpy_draws = np.random.RandomState(seed)

        def drawn_by_numpy(seen: QueryContext, n: int, subset: int, rng: Generator) -> QueryContext:
            size = min(max(subset, n), len(seen.unlabeled))
            drawn = numpy_draws.choice(seen.unlabeled.numpy(), size=size, replace=False)
            return seen.restricted_to(torch.from_numpy(np.sort(drawn)))

        monkeypatch.setattr(import_module("sslpl.query.refine"), "subsample", drawn_by_numpy)
        case, answers = random_case(seed), stored("refine")
        strategies = {
            "margin": partial(score_then_select, scorer=margin, selector=top),
            "core_set": core_set,
        }
        if case.labeled == 0:
            del strategies["core_set"]
        *_, last = strategies.values()
        selection = refine(
            case_context(case), case.n, generator(), strategies=strategies, last=last, **self.options(seed)
        )
        assert selection.index.tolist() == answers[str(seed)].tolist()

    def test_the_needs_of_its_strategies_are_its_own(self) -> None:
        strategies = {"learned": partial(score_then_select, scorer=predicted_loss, selector=top)}
        assert needs(partial(refine, strategies=strategies, last=max_herding)).module
        assert not needs(partial(refine, strategies={"coverage": max_herding}, last=max_herding)).module

    def test_images_are_predicted_once(self) -> None:
        seen, calls = context(), []

        def counted(weights: Weights | None, index: Tensor) -> Predictions:
            calls.append(len(index))
            return seen.predict(weights, index)

        strategies = {"coverage": max_herding, "clusters": typiclust}
        refine(replace(seen, predict=counted), 5, generator(), strategies=strategies, last=uherding, depth=2, batches=4)
        assert calls == [len(seen.unlabeled), len(seen.labeled)]

    def test_without_levels_only_the_last_strategy_selects(self) -> None:
        seen = case_context(random_case(12))
        selection = refine(seen, 9, generator(), strategies={}, last=max_herding, depth=0)
        assert selection.index.tolist() == max_herding(seen, 9, generator()).index.tolist()


class TestActiveFT:
    """The values were computed in float64 by yichen928/ActiveFT, `ActiveFT_CIFAR.py`, where no image is labeled, and by
    BorealisAI/uherding (75299cd), `ActiveFT`, elsewhere; initial images are as drawn there, the rest varies."""

    @staticmethod
    def recipe(seed: int) -> CentroidRecipe:
        temperature, rate = (0.07, 0.2)[seed // 2 % 2], (1e-3, 1e-2)[seed // 4 % 2]
        return CentroidRecipe(temperature, balance=1.0, steps=60 if seed % 2 else 300, rate=rate, batch=100_000)

    @staticmethod
    def parts(case: Case) -> tuple[GatheredRows, Tensor]:
        unit = normalize(case.embedding.double())
        points = unit[case.labeled :]
        return GatheredRows(points, torch.arange(len(points)), unit=True), unit[: case.labeled]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_centroids_and_images(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(neighbors.BLOCK, "cpu", 50_000)
        case, answers = random_case(seed), stored("active_ft")
        points, labeled = self.parts(case)
        initial = torch.from_numpy(answers[f"{seed}_initial"]).long() - case.labeled
        centroids = moved_centroids(points, points[initial], labeled, self.recipe(seed), generator())
        similarity = (centroids @ points[torch.arange(len(points))].T).amax(dim=1)
        np.testing.assert_allclose(similarity, answers[f"{seed}_similarity"], atol=1e-6)
        rows, _ = nearest_unused(points, centroids)
        assert sorted((rows + case.labeled).tolist()) == answers[str(seed)].tolist()

    def test_an_image_is_taken_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points, _ = self.parts(random_case(13))
        centroids = points[torch.tensor([3, 3, 3, 90, 3])]
        order = (centroids[:1] @ points[torch.arange(len(points))].T)[0].argsort(descending=True).tolist()
        order.remove(90)
        for candidates in (1, 32):
            monkeypatch.setattr(import_module("sslpl.query.active_ft"), "CANDIDATES", candidates)
            rows, cosine = nearest_unused(points, centroids)
            assert rows.tolist() == [*order[:3], 90, order[3]]
            torch.testing.assert_close(cosine[:1], torch.ones(1).double())

    def test_a_step_sees_a_random_batch(self) -> None:
        points, labeled = self.parts(random_case(9))
        whole, part = (
            moved_centroids(points, points[torch.arange(4)], labeled, self.recipe(9)._replace(batch=batch), generator())
            for batch in (len(points), 50)
        )
        assert not torch.equal(whole, part)
        torch.testing.assert_close(whole, part, atol=0.5, rtol=0)


class TestClassStratified:
    """The values were computed by MIC-DKFZ/nnActive (f09a05c): `Probs.class_pred_entropy`, `exponential_schedule`,
    `power_noising` and `_compose_query_of_patches` of `ClassBalancedEntropy_66FG`, where each image is one patch.

    There, overlapping patches are skipped within a file, before the query is composed; the images of a stratum are
    therefore compared before those that others took are skipped, for the same noise. Which classes get the remainder
    is random.
    """

    @pytest.mark.parametrize("seed", SEEDS)
    def test_the_same_images_of_each_class(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        case, answers = random_case(seed), stored("class_stratified")
        logits = case.logits[case.labeled :].double()
        queries = 1 + seed % 9
        betas = [scheduled_beta(query, queries, 1.0, 100.0) for query in range(queries)]
        assert betas == pytest.approx(answers[f"{seed}_betas"].tolist())
        beta = betas[seed * seed % queries]
        numpy_noise = np.random.RandomState(seed).gumbel(size=(logits.shape[1] + 1, len(logits)))
        monkeypatch.setattr(
            import_module("sslpl.query.class_stratified"), "gumbel_noise", lambda *_: torch.from_numpy(numpy_noise.T)
        )
        rows = highest_of_each_class(class_entropy(logits).log(), logits, case.n, beta, generator())
        strata = answers[f"{seed}_strata"]
        for stratum in range(-1, logits.shape[1]):
            theirs = answers[f"{seed}_rows"][strata == stratum].tolist()
            assert rows[stratum, : len(theirs)].tolist() == theirs
        counts = np.bincount(strata % (logits.shape[1] + 1), minlength=logits.shape[1] + 1)
        _, quotas = drawn_quotas(case.n, logits.shape[1], 0.66, generator())
        assert sorted(quotas[:-1].tolist()) == sorted(counts[:-1].tolist())
        assert quotas[-1] == counts[-1]

    def test_blocks_and_images_that_others_took(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(neighbors.BLOCK, "cpu", 100)
        monkeypatch.setattr(
            import_module("sslpl.query.class_stratified"), "gumbel_noise", lambda shape, _: torch.zeros(shape)
        )
        case = random_case(6)
        log_score = class_entropy(case.logits).log()
        rows = highest_of_each_class(log_score, case.logits, 30, 2.0, generator())
        expected = class_log_scores(log_score, case.logits).T.argsort(dim=1, descending=True)[:, :30]
        assert torch.equal(rows, expected)
        taken = taken_in_turn(torch.tensor([[4, 2, 1], [2, 4, 7], [4, 2, 9]]), torch.tensor([2, 1, 1]))
        assert taken.tolist() == [4, 2, 7, 9]

    def test_two_thirds_are_spread_over_the_classes_and_scores_of_0_come_last(self) -> None:
        logits = 12 * one_hot(torch.arange(120) % 3, 3).float()
        logits[90:] = 12 * torch.tensor([1.0, 0.0, 0.0])
        logits[:30] = 40 * logits[:30]
        case = Case(logits, logits, torch.zeros(0), 0, 60)
        query = partial(class_stratified, scorer=entropy, share=1.0, first_beta=50.0)
        selection = query(replace(case_context(case), cycles=1), 60, generator())
        assert torch.bincount(selection.index % 3 * (selection.index < 90)).tolist() == [20, 20, 20]
        assert selection.index.min() >= 30

    def test_negative_scores_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"^query=class_stratified .* choose a scorer without negative ones$"):
            class_stratified(case_context(random_case(1)), 5, generator(), scorer=margin)
