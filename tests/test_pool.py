import pytest
import torch

from sslpl.pool import Budget, LabelPool, initial_pool, removal_size, trimmed, without
from sslpl.seeds import rng, shuffled
from sslpl.types import UserError


def test_labeling_moves_images_once() -> None:
    pool = LabelPool(5, torch.tensor([3])).label(torch.tensor([0, 4]))
    assert pool.labeled.tolist() == [3, 0, 4]
    assert pool.unlabeled.tolist() == [1, 2]


@pytest.mark.parametrize("picked", [[3], [1, 1], [5], [-1]])
def test_labeling_refuses_repeats_and_strangers(picked: list[int]) -> None:
    with pytest.raises(ValueError, match="picked"):
        LabelPool(5, torch.tensor([3])).label(torch.tensor(picked))


def test_a_budget_counts_images_and_shares() -> None:
    assert Budget(0.05, 0.05, 6, 0.5).of(50_000) == Budget(2500, 2500, 6, 25_000)
    assert Budget(1, 1.0, 1, 99).of(10) == Budget(1, 10, 1, 10)
    assert Budget(1e-9, 1, 1, 1.0).of(10).initial == 1


@pytest.mark.parametrize("budget", [Budget(6, 1, 6), Budget(11, 1, 1), Budget(0.5, 0.3, 3)])
def test_a_budget_above_the_pool_is_refused(budget: Budget) -> None:
    with pytest.raises(UserError, match="the pool has 10 images"):
        budget.of(10)


def test_initial_pools_are_random_and_grow_into_each_other() -> None:
    small, large = (initial_pool(100, n, rng(0, "initial")).labeled.tolist() for n in (5, 20))
    assert small == large[:5]
    assert len(set(large)) == 20
    assert initial_pool(100, 20, rng(1, "initial")).labeled.tolist() != large


@pytest.mark.parametrize(("initial", "removed"), [(0, 0), (199, 0), (200, 2), (399, 2), (400, 4), (2500, 24)])
def test_removal_size_is_a_hundredth_and_even(initial: int, removed: int) -> None:
    assert removal_size(initial) == removed


def test_trimming_leaves_out_the_easiest_of_old_and_new() -> None:
    old, new = torch.arange(10), torch.arange(20, 30)
    removed = trimmed(old, torch.arange(10.0), new, -torch.arange(10.0), initial_size=400)
    assert removed.tolist() == [0, 1, 29, 28]
    assert without(torch.cat([old, new]), removed).tolist() == [*range(2, 10), *range(20, 28)]


def test_nothing_is_trimmed_under_200_initial_labels() -> None:
    old, new = torch.arange(10), torch.arange(20, 30)
    assert len(trimmed(old, torch.rand(10), new, torch.rand(10), initial_size=150)) == 0


def test_a_draw_depends_on_its_purpose_and_counters_alone() -> None:
    def draw(*arguments: object) -> list[float]:
        return torch.rand(4, generator=rng(*arguments)).tolist()  # type: ignore[arg-type]

    draws = [draw(0, "order", 0), draw(0, "order", 1), draw(0, "weak", 0), draw(1, "order", 0), draw(0, "order", 0, 0)]
    assert len({tuple(d) for d in draws}) == len(draws)
    torch.rand(3)
    assert draw(0, "order", 0) == draws[0]


def test_subsets_keep_the_order_of_the_images_they_share() -> None:
    everything = shuffled(torch.arange(50), 50, rng(0, "order")).tolist()
    some = shuffled(torch.arange(10, 40), 50, rng(0, "order")).tolist()
    assert some == [index for index in everything if 10 <= index < 40]
