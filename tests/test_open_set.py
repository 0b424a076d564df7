"""Images of no class in the pool: they cost a label, teach nothing, and are counted."""

import csv
import json
from collections.abc import Callable

import pytest
import torch
from conftest import TINY, Result, run_folder
from test_validation import PhaseRecorder, setup_of
from test_variants import even, numbered

from sslpl.data.datasets import digits
from sslpl.data.variants import PoolVariant, apply_variant, open_classes
from sslpl.learn.metrics import loss_rank_correlation
from sslpl.loop import initial_state, run_active_learning
from sslpl.phases.label import record_labels
from sslpl.ssl.rules import pseudo_label_counts
from sslpl.types import Predictions, Selection, UserError

Command = Callable[..., Result]
OPEN = (*TINY, "method=random", "dataset.open_set=0.4")


def test_the_images_of_an_open_set_stay_in_the_pool_and_leave_the_test_set() -> None:
    data = numbered(even(5, 4), 5)
    opened = apply_variant(data, PoolVariant(open_set=["1", 3]), 0)
    assert opened.class_names == ("0", "2", "4")
    assert opened.train is data.train
    assert opened.train_labels.tolist() == [0, -2, 1, -2, 2] * 4
    assert opened.test_labels.tolist() == [0, 1, 2] * 4
    (images,) = opened.test.batches([torch.arange(12)])
    assert [int(value) % 5 for value in images[:, 0, 0, 0]] == [0, 2, 4] * 4


def test_a_share_is_drawn_once_and_noise_stays_within_the_classes() -> None:
    names = tuple(map(str, range(10)))
    assert len(open_classes(names, 0.35)) == 4
    first, second = (apply_variant(numbered(even(10, 20), 10), PoolVariant(open_set=0.4), seed) for seed in (0, 1))
    assert first.class_names == second.class_names
    assert len(first.class_names) == 6
    noisy = apply_variant(numbered(even(10, 20), 10), PoolVariant(open_set=0.4, label_noise=0.5), 0)
    assert torch.equal(noisy.true_labels, first.train_labels)  # type: ignore[arg-type]
    assert torch.equal(noisy.train_labels < 0, first.train_labels < 0)
    assert int((noisy.train_labels != first.train_labels).sum()) == 60


@pytest.mark.parametrize(
    ("open_set", "said"),
    [
        (0.01, r"dataset\.open_set=0\.01: must leave out at least one of 10 classes .* leaves out 0"),
        (0.9, "leaves out 9"),
        (["zero", "nime"], "nime is no class; did you mean nine"),
    ],
)
def test_impossible_open_sets_are_refused(open_set: float | list[str | int], said: str) -> None:
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero")
    with pytest.raises(UserError, match=said):
        open_classes(names, open_set)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset.open_set=1.0"], "dataset.open_set=1.0: must be a number from 0 to below 1"),
        (["dataset.open_set=dog"], "dataset.open_set=dog: must be a number from 0 to below 1"),
        (["dataset.open_set=[11]"], "dataset.open_set: 11 is no class; did you mean 1? (known: 0, 1"),
        (["dataset.open_set=0.2", "budget.initial_pool=balanced"], "budget.initial_pool=balanced: must be random or"),
        (
            ["dataset.open_set=0.2", "query=greedy_oracle", "query.oracle_baseline=true"],
            "query.oracle_baseline=true: must be false with dataset.open_set=0.2",
        ),
    ],
)
def test_mistakes_are_one_line(sslpl: Command, overrides: list[str], said: str) -> None:
    done = sslpl(*OPEN[:-1], *overrides)
    assert done.code == 2
    assert done.err.startswith(f"sslpl: {said}")
    assert done.err.count("\n") == 1


def test_a_rejected_image_costs_a_label_and_is_not_learned_from(sslpl: Command) -> None:
    done = sslpl(*OPEN)
    assert done.code == 0, done.err
    folder = run_folder()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "queries.csv").open() as file:
        labels = [(int(row["cycle"]), int(row["label"])) for row in csv.DictReader(file)]
    labeled, rejected = ([int(row[key]) for row in rows] for key in ("labeled", "rejected"))
    assert labeled == [24, 48, 72]
    assert [sum(cycle <= k for cycle, _ in labels) for k in range(3)] == [
        paid - wasted for paid, wasted in zip(labeled, rejected, strict=True)
    ]
    new = [rejected[0], rejected[1] - rejected[0], rejected[2] - rejected[1]]
    assert [float(row["wasted_label_rate"]) for row in rows] == pytest.approx([count / 24 for count in new])
    assert 0 < sum(new) < 72
    assert {label for _, label in labels} <= set(range(6))
    assert json.loads((folder / "summary.json").read_text())["labeled"] == labeled


def test_strategies_see_images_of_no_class_until_they_are_rejected() -> None:
    setup = setup_of(*OPEN)
    state = initial_state(setup)
    open_images = setup.dataset.train_labels == -2
    assert len(state.pool.rejected) > 0
    assert bool(open_images[state.pool.rejected].all())
    assert bool(open_images[state.pool.unlabeled].any())
    assert not bool(open_images[state.pool.labeled].any())
    run_active_learning(setup, state, PhaseRecorder())
    assert len(state.pool.labeled) + len(state.pool.rejected) == 72
    assert bool(open_images[state.pool.rejected].all())
    assert not bool(open_images[state.pool.labeled].any())


def test_an_initial_pool_without_a_class_is_refused() -> None:
    setup = setup_of(*OPEN)
    index = (setup.dataset.train_labels == -2).nonzero().flatten()[:3]
    selection = Selection(index, torch.full((3,), torch.nan, dtype=torch.float64))
    with pytest.raises(UserError, match=r"budget\.initial=3: no image of the initial pool has a class"):
        record_labels(setup, initial_state(setup), selection, setup.dataset.train_labels[index], 0)


def test_figures_of_the_module_treat_images_of_no_class_as_such() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    predictions = Predictions(torch.arange(4), logits, logits, torch.tensor([0.1, 0.3, 9.0, 0.7]))
    assert loss_rank_correlation(predictions, torch.tensor([0, 1, -2, 0])) == pytest.approx(1.0)
    assert loss_rank_correlation(predictions, torch.tensor([0, -2, -2, -2])) is None
    assert loss_rank_correlation(predictions, torch.tensor([0, 1, -1, 0])) is None
    counts = pseudo_label_counts(logits.softmax(dim=1), torch.ones(4), torch.tensor([0, 0, -2, 0]))
    assert counts.tolist() == [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]]


def test_every_dataset_of_names_can_be_opened_by_name() -> None:
    opened = apply_variant(digits(), PoolVariant(open_set=[8, "9"]), 0)
    assert opened.class_names == tuple("01234567")
    assert len(opened.test) == len(opened.test_labels) < 360
