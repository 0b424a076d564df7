"""Agreement of strategies with their authors' code, on the cases of strategy_cases.py; the values are numbers alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import SEEDS, Case, case_context, random_case

from sslpl.clustering import neighbors
from sslpl.clustering.kernel_coverage import coverage, coverage_gain, greedy_kernel_coverage, kernel_points
from sslpl.clustering.neighbors import on_grid
from sslpl.query import max_herding

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
        twice = Case(torch.cat([case.embedding, case.embedding]), torch.cat([case.logits] * 2), case.labels, case.n)
        everything = len(twice.embedding) - twice.labeled
        selection = max_herding(case_context(twice), everything, generator())
        distinct = len(case.embedding) - case.labeled
        assert (selection.score[:distinct] > 0).all()
        assert (selection.score[distinct:] == 0).all()
        assert len({index % len(case.embedding) for index in selection.index[:distinct].tolist()}) == distinct
