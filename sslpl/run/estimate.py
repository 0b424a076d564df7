"""The dry run: estimates what a run would take without running it."""

import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from sslpl.clustering.linkage import complete_linkage_bytes
from sslpl.data.batches import unlabeled_batch_size
from sslpl.learn.joint_step import JointInputs, joint_step
from sslpl.learn.optimizers import joint_optimizer
from sslpl.learn.unlabeled_batches import task_batch_size
from sslpl.loop import empty_state
from sslpl.recording.progress import duration
from sslpl.setup import Setup
from sslpl.trimming import trim_size


class CycleCounts(NamedTuple):
    """Images and optimizer steps of one cycle."""

    labeled: int
    trained: int  # images of the joint training: without held-out and excluded ones
    joint_steps: int
    finetune_steps: int
    forward_images: int  # images that pass the frozen backbone


def dry_run(setup: Setup, console: Console, folder: Path) -> None:
    """Prints cycles, budget and memory, and the time estimated from a few timed steps."""
    seconds_per_image, forward_seconds = measured_speeds(setup)
    schedule = setup.schedule(has_module(setup))
    table = Table("cycle", "labeled", "trained on", "train steps", "fine-tune steps", "estimated time", box=None)
    train, test, total = setup.dataset.train, setup.dataset.test, 0.0
    for cycle in range(setup.budget.cycles):
        counts = cycle_counts(setup, cycle)
        unlabeled_views = counts.joint_steps * unlabeled_views_per_step(setup, len(train) - counts.labeled)
        trainings = setup.needs.members if schedule.has_ensemble(cycle) else 1
        epochs = schedule.epochs("train", counts.trained)
        train_images = trainings * (epochs * counts.trained + unlabeled_views)
        seconds = train_images * seconds_per_image + counts.forward_images * forward_seconds
        total += seconds
        *shown, _ = counts
        table.add_row(str(cycle + 1), *(f"{count:,}" for count in shown), duration(seconds))
    console.print(table)
    data = sum(len(images) * images.shape[0] * images.shape[1] * images.shape[2] for images in (train, test))
    embedding = getattr(empty_state(setup).backbone, "channels", (512,))[-1]
    clustering = complete_linkage_bytes(int(setup.budget.candidates), int(embedding))
    console.print(
        f"pool {len(train):,} images, test {len(test):,}; dataset {data / 2**20:,.0f} MiB on {setup.device}; "
        f"clustering {int(setup.budget.candidates):,} candidates would take {clustering / 2**20:,.0f} MiB\n"
        f"{labeling_note(setup)}"
        f"estimated time {duration(total)} from a few timed steps, without queries; nothing was run or written\n"
        f"folder {folder}",
        highlight=False,
        soft_wrap=True,
    )


def labeling_note(setup: Setup) -> str:
    """Returns the line that says how many labels people will be asked for; empty if all labels are known."""
    if not setup.has_unknown_labels:
        return ""
    budget, any_labeled = setup.budget, bool((setup.dataset.train_labels >= 0).any())
    initial = "" if any_labeled else f"{int(budget.initial):,} images at the start, "
    return f"waits for people's labels: {initial}{budget.cycles - 1} times {int(budget.per_cycle):,} more\n"


def cycle_counts(setup: Setup, cycle: int) -> CycleCounts:
    """Computes the images and optimizer steps of one cycle (from 0)."""
    training, budget = setup.training, setup.budget
    schedule = setup.schedule(has_module(setup))
    labeled = int(budget.labeled_after(cycle))
    held_out, unlabeled = budget.held_out_after(cycle), len(setup.dataset.train) - labeled
    train_size, initial_size = labeled - held_out, int(budget.initial) - budget.held_out_after(0)
    trained = train_size - (trim_size(initial_size) if schedule.is_trimmed(cycle) else 0)
    epochs = schedule.epochs("train", trained)
    joint_steps = epochs * schedule.steps_per_epoch(trained)
    finetune_steps, forward_images = 0, len(setup.dataset.test) + unlabeled + epochs * held_out
    if schedule.has_finetune(cycle):
        batches = schedule.steps_per_epoch(train_size)
        size = unlabeled_batch_size(unlabeled, train_size, training.batch_size, training.unlabeled_batch_limit)
        unlabeled_views = (setup.num_weak_views + 1) * min(size * batches, unlabeled) if setup.ssl else 0
        finetune_steps = training.finetune_epochs * batches
        forward_images += training.finetune_epochs * (train_size + unlabeled_views)
    return CycleCounts(labeled, trained, joint_steps, finetune_steps, forward_images)


def unlabeled_views_per_step(setup: Setup, unlabeled: int) -> int:
    """Counts the views of unlabeled images that pass the backbone in a joint step, without those for a teacher."""
    method = setup.task_ssl
    return 0 if method is None else method.num_forward_views * task_batch_size(setup, unlabeled)


def has_module(setup: Setup) -> bool:
    """True if the run has a loss prediction module."""
    return setup.build(0)[1] is not None


def measured_speeds(setup: Setup, max_steps: int = 4, max_seconds: float = 2.0) -> tuple[float, float]:
    """Times joint training; returns seconds per image there and, as a third of that, in a frozen forward pass.

    One step at least is timed, after one of warm-up.
    """
    state = empty_state(setup)
    optimizer = joint_optimizer(setup, state)
    size = min(setup.training.batch_size, len(setup.dataset.train))
    views = setup.augmentation.normalize(next(setup.dataset.train.batches([torch.arange(size)])))
    labels = torch.zeros(size, dtype=torch.int64, device=setup.device)

    def run_step() -> None:
        joint_step(setup, state, optimizer, JointInputs(views, labels, size), detached=False).tolist()

    run_step()
    start, steps, elapsed = time.perf_counter(), 0, 0.0
    while steps < max_steps and elapsed < max_seconds:
        run_step()
        steps, elapsed = steps + 1, time.perf_counter() - start
    seconds = elapsed / (steps * size)
    return seconds, seconds / 3
