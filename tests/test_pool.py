import pytest
import torch

from sslpl.budget import Budget
from sslpl.class_balance import apportionment_order, geometric_frequencies
from sslpl.pool import LabelPool, random_pool, without
from sslpl.seeds import rng, shuffled
from sslpl.trimming import trim_size, trimmed_positions
from sslpl.types import UserError


def test_labeling_moves_images_once() -> None:
    pool = LabelPool(5, torch.tensor([3])).label(torch.tensor([0, 4]))
    assert pool.labeled.tolist() == [3, 0, 4]
    assert pool.unlabeled.tolist() == [1, 2]


@pytest.mark.parametrize("index", [[3], [1, 1], [5], [-1]])
def test_labeling_rejects_repeated_and_unknown_positions(index: list[int]) -> None:
    with pytest.raises(ValueError, match="selected"):
        LabelPool(5, torch.tensor([3])).label(torch.tensor(index))


def test_a_budget_counts_images_and_shares() -> None:
    assert Budget(0.05, 0.05, 6, 0.5).in_images(50_000) == Budget(2500, 2500, 6, 25_000)
    assert Budget(1, 1.0, 1, 99).in_images(10) == Budget(1, 10, 1, 10)
    assert Budget(1e-9, 1, 1, 1.0).in_images(10).initial == 1


@pytest.mark.parametrize("budget", [Budget(6, 1, 6), Budget(11, 1, 1), Budget(0.5, 0.3, 3)])
def test_a_budget_above_the_pool_is_refused(budget: Budget) -> None:
    with pytest.raises(UserError, match="the pool has 10 images"):
        budget.in_images(10)


def test_initial_pools_are_random_and_grow_into_each_other() -> None:
    small, large = (random_pool(100, n, rng(0, "initial")).labeled.tolist() for n in (5, 20))
    assert small == large[:5]
    assert len(set(large)) == 20
    assert random_pool(100, 20, rng(1, "initial")).labeled.tolist() != large


def test_frequencies_fall_geometrically() -> None:
    torch.testing.assert_close(geometric_frequencies(3, 100.0), torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64))
    assert geometric_frequencies(1, 100.0).tolist() == [1]
    assert geometric_frequencies(4, 1.0).tolist() == [1] * 4


def test_turns_are_those_of_one_class_after_the_other_being_due() -> None:
    labels = torch.randint(0, 4, (60,), generator=rng(0, "labels"))
    frequency = torch.tensor([1.0, 0.5, 0.2113, 0.1379], dtype=torch.float64)
    order, met, left = (
        torch.argsort(apportionment_order(labels, frequency), stable=True),
        [0] * 4,
        torch.bincount(labels).tolist(),
    )
    for position in order.tolist():
        due = [(met[c] + 0.5) / float(frequency[c]) if met[c] < left[c] else float("inf") for c in range(4)]
        assert labels[position] == due.index(min(due))
        met[labels[position]] += 1


@pytest.mark.parametrize("initial", [1, 9, 20, 23, 95, 100])
def test_a_balanced_initial_pool_has_equally_many_of_each_class(initial: int) -> None:
    labels = torch.cat([torch.zeros(80), torch.ones(10), torch.full((10,), 2)]).long()
    chosen = random_pool(100, initial, rng(0, "initial"), (labels, torch.ones(3))).labeled
    counts = torch.bincount(labels[chosen], minlength=3)
    assert counts.sum() == initial
    if initial <= 30:
        assert counts.max() - counts.min() <= 1
    else:  # classes that are used up leave the rest to the others
        assert counts[1:].tolist() == [10, 10]
    assert (
        random_pool(100, 100, rng(0, "initial"), (labels, torch.ones(3))).labeled[:initial].tolist() == chosen.tolist()
    )
    other = random_pool(100, initial, rng(1, "initial"), (labels, torch.ones(3))).labeled
    assert initial in (1, 100) or set(other.tolist()) != set(chosen.tolist())


def test_an_imbalanced_initial_pool_falls_off_by_its_ratio() -> None:
    labels = torch.arange(4000) % 4
    frequency = Budget(1, 1, 1, initial_pool="imbalanced", initial_ratio=8.0).initial_frequency(4)
    assert frequency is not None
    chosen = random_pool(4000, 150, rng(0, "initial"), (labels, frequency)).labeled
    assert torch.bincount(labels[chosen]).tolist() == [80, 40, 20, 10]


def test_the_initial_pool_is_as_it_comes_unless_asked_for() -> None:
    assert Budget(1, 1, 1).initial_frequency(3) is None
    balanced = Budget(1, 1, 1, initial_pool="balanced").initial_frequency(3)
    assert balanced is not None
    assert balanced.tolist() == [1, 1, 1]


def test_a_balanced_initial_pool_needs_an_image_of_each_class() -> None:
    budget = Budget(0.05, 1, 1, initial_pool="balanced")
    assert budget.in_images(200, 10).initial == 10
    with pytest.raises(UserError, match=r"budget.initial=0.05: must be at least 11 images"):
        budget.in_images(200, 11)


def test_a_share_of_each_batch_is_held_out_and_counts_as_labeled() -> None:
    budget = Budget(25, 10, 3, 30, validation=0.1).in_images(100)
    assert (budget.held_out(25), budget.held_out(10)) == (3, 1)
    assert [budget.labeled_after(k) for k in range(3)] == [25, 35, 45]
    assert [budget.held_out_after(k) for k in range(3)] == [3, 4, 5]
    assert [Budget(25, 10, 3, 30).held_out_after(k) for k in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(1, 5, 2, validation=0.5), "leave at least one of initial=1 "),
        (Budget(9, 1, 2, validation=0.5), "leave at least one of per_cycle=1 "),
        (Budget(9, 5, 2, validation=0.05), "hold out at least one of initial=9 "),
    ],
)
def test_validation_leaves_and_takes_something(budget: Budget, said: str) -> None:
    with pytest.raises(UserError, match=rf"budget\.validation=0\.0?5: must {said}"):
        budget.in_images(100)
    Budget(9, 1, 1, validation=0.5).in_images(100)  # nothing is labeled per cycle in a single one


@pytest.mark.parametrize(("initial", "removed"), [(0, 0), (199, 0), (200, 2), (399, 2), (400, 4), (2500, 24)])
def test_removal_size_is_a_hundredth_and_even(initial: int, removed: int) -> None:
    assert trim_size(initial) == removed


def test_trimming_leaves_out_the_easiest_of_old_and_new() -> None:
    old, new = torch.arange(10), torch.arange(20, 30)
    removed = trimmed_positions(old, torch.arange(10.0), new, -torch.arange(10.0), initial_size=400)
    assert removed.tolist() == [0, 1, 29, 28]
    assert without(torch.cat([old, new]), removed).tolist() == [*range(2, 10), *range(20, 28)]


def test_nothing_is_trimmed_under_200_initial_labels() -> None:
    old, new = torch.arange(10), torch.arange(20, 30)
    assert len(trimmed_positions(old, torch.rand(10), new, torch.rand(10), initial_size=150)) == 0


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
