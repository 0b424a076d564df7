"""The schedule of a run, against its actual batches and phases."""

import pytest
import torch

from sslpl.data.batches import split_batches
from sslpl.schedule import Schedule
from sslpl.training import Training


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_steps_are_as_many_as_there_are_batches(batch_size: int) -> None:
    schedule = Schedule(2, Training(batch_size=batch_size), has_module=True)
    for images in range(1, 17):
        assert schedule.steps_per_epoch(images) == len(split_batches(torch.arange(images), batch_size))


def test_the_last_cycle_neither_queries_nor_fine_tunes() -> None:
    schedule = Schedule(2, Training(), has_module=True)
    assert schedule.phases(0) == ("train", "finetune", "evaluate", "query", "label")
    assert schedule.phases(1) == ("train", "evaluate")
    assert Schedule(2, Training(finetune_last=True), True).phases(1) == ("train", "finetune", "evaluate")


def test_nothing_is_fine_tuned_without_a_module_or_without_epochs() -> None:
    assert "finetune" not in Schedule(2, Training(), has_module=False).phases(0)
    assert "finetune" not in Schedule(2, Training(finetune_epochs=0), has_module=True).phases(0)


def test_an_ensemble_is_trained_for_a_query_alone() -> None:
    schedule = Schedule(2, Training(epochs=7, batch_size=20), has_module=False, members=3)
    assert schedule.phases(0) == ("train", "ensemble", "evaluate", "query", "label")
    assert schedule.phases(1) == ("train", "evaluate")
    assert [schedule.epochs(phase, 100) for phase in ("train", "ensemble")] == [7, 14]
    longer = schedule._replace(training=Training(epochs=7, batch_size=20, min_steps=50))  # of 5 steps per epoch
    assert [longer.epochs(phase, 100) for phase in ("train", "ensemble")] == [10, 20]


def test_one_phase_follows_another_until_the_cycle_ends() -> None:
    schedule, phase, seen = Schedule(2, Training(), has_module=True), "start", []
    while (following := schedule.phase_after(phase, 0)) is not None:
        seen.append(phase := following)
    assert tuple(seen) == schedule.phases(0)


def test_trimming_spares_the_last_cycle_unless_it_is_the_first() -> None:
    assert [Schedule(3, Training(), True).is_trimmed(cycle) for cycle in range(3)] == [True, True, False]
    assert Schedule(1, Training(), True).is_trimmed(0)
    assert not Schedule(3, Training(trim=False), True).is_trimmed(0)
