"""Lazy greedy selection gives what computing every gain at every step gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sslpl.clustering.kernel_coverage import coverage_gain, greedy_kernel_coverage, initial_gains, kernel_points
from sslpl.clustering.lazy_greedy import row_of_highest_gain
from sslpl.clustering.neighbors import BLOCK, on_grid


def set_gains(member: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Returns the gains of sets [N, M], the number of members not covered yet, and a mask [M] of the covered ones."""
    covered = torch.zeros(member.shape[1], dtype=torch.bool)
    return lambda rows: (member[rows] & ~covered).sum(dim=1), covered


@pytest.mark.parametrize("seed", range(5))
def test_of_many_equal_gains_the_first_is_selected(seed: int) -> None:
    member = torch.rand(400, 60, generator=torch.Generator().manual_seed(seed)) < 0.05  # small numbers: many ties
    gain, covered = set_gains(member)
    bound, selected = member.sum(dim=1), torch.zeros(400, dtype=torch.bool)
    for _ in range(50):
        every = gain(torch.arange(400)).masked_fill(selected, -1)
        row = row_of_highest_gain(bound, gain)
        assert row.item() == every.argmax().item()
        assert bound[row] == every.max()
        bound[row], selected[row] = -1, True
        covered |= member[row][0]


def test_gains_that_are_zero_are_not_computed_again() -> None:
    asked: list[int] = []

    def gain(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return torch.zeros(len(rows))

    bound = torch.ones(1000)
    for expected in range(5):
        assert row_of_highest_gain(bound, gain).item() == expected
        bound[expected] = -1
    assert sum(asked) == 1000


@pytest.mark.parametrize("block", [1 << 22, 1 << 10])
def test_initial_gains_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setitem(BLOCK, "cpu", block)
    generator = torch.Generator().manual_seed(0)
    points = kernel_points(on_grid(torch.randn(150, 8, generator=generator)))
    covered, weight = 0.1 * torch.rand(2, 150, generator=generator, dtype=torch.float64)
    expected = coverage_gain(points, points, covered, weight, 0.7)
    torch.testing.assert_close(initial_gains(points, covered, weight, 0.7), expected, rtol=1e-12, atol=0)


def test_duplicates_are_selected_in_their_order() -> None:
    vectors = on_grid(torch.randn(40, 6, generator=torch.Generator().manual_seed(1))).repeat(3, 1)
    nothing = torch.zeros(120, dtype=torch.float64)
    rows, gains = greedy_kernel_coverage(kernel_points(vectors), nothing, torch.ones_like(nothing), 0.5, 60)
    assert sorted(rows[:40].tolist()) == list(range(40))  # each vector once, by its first copy
    assert rows[40:].tolist() == list(range(40, 60))  # then nothing is gained
    assert gains[40:].tolist() == [0.0] * 20
