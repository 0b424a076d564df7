"""What a run would take, reckoned without running it."""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sslpl.clustering.linkage import complete_linkage_bytes
from sslpl.data.batches import unlabeled_batch_size
from sslpl.learn.joint import JointInputs, joint_step
from sslpl.learn.optimizers import joint_optimizer
from sslpl.learn.unlabeled_batches import task_batch_size
from sslpl.loop import empty_state
from sslpl.recording.progress import duration
from sslpl.setup import Setup
from sslpl.trimming import trim_size


def dry_run(setup: Setup, console: Console, folder: Path) -> None:
    """Prints cycles, budget, memory and time as reckoned from a few timed steps."""
    seconds_per_image, forward = measured_speeds(setup)
    table = Table("cycle", "labeled", "trained on", "train steps", "fine-tune steps", "reckoned time", box=None)
    total = 0.0
    for cycle in range(setup.budget.cycles):
        labeled, trained, steps, tuned, views = cycle_counts(setup, cycle)
        images = setup.training.epochs * trained + steps * unlabeled_views_per_step(
            setup, len(setup.dataset.train) - labeled
        )
        seconds = images * seconds_per_image + views * forward
        total += seconds
        table.add_row(str(cycle + 1), f"{labeled:,}", f"{trained:,}", f"{steps:,}", f"{tuned:,}", duration(seconds))
    console.print(table)
    train = setup.dataset.train
    data = sum(len(part) * train.shape[0] * train.shape[1] * train.shape[2] for part in (train, setup.dataset.test))
    embedding = getattr(empty_state(setup).backbone, "channels", (512,))[-1]
    clustering = complete_linkage_bytes(int(setup.budget.candidates), int(embedding))
    console.print(
        f"pool {len(train):,} images, test {len(setup.dataset.test):,}; "
        f"dataset {data / 2**20:,.0f} MiB on {setup.device}; "
        f"clustering {int(setup.budget.candidates):,} candidates would take {clustering / 2**20:,.0f} MiB\n"
        f"{labeling_note(setup)}"
        f"reckoned time {duration(total)} from a few timed steps, queries aside; nothing was run or written\n"
        f"folder {folder}",
        highlight=False,
        soft_wrap=True,
    )


def labeling_note(setup: Setup) -> str:
    """What people will be asked for, as a line; empty if nobody will be."""
    if not setup.has_unknown_labels:
        return ""
    budget, known = setup.budget, bool((setup.dataset.train_labels >= 0).any())
    begin = "" if known else f"{int(budget.initial):,} images to begin with, "
    return f"waits for people's labels: {begin}{budget.cycles - 1} times {int(budget.per_cycle):,} more\n"


def cycle_counts(setup: Setup, cycle: int) -> tuple[int, int, int, int, int]:
    """Labeled, trained on, joint steps, fine-tune steps, and images that a frozen backbone sees, in one cycle."""
    training, budget = setup.training, setup.budget
    schedule = setup.schedule(has_module(setup))
    labeled = int(budget.labeled_after(cycle))
    held_out = budget.held_out_after(cycle)
    learned, first = labeled - held_out, int(budget.initial) - budget.held_out_after(0)
    trained = learned - (trim_size(first) if schedule.is_trimmed(cycle) else 0)
    steps = training.epochs * schedule.steps_per_epoch(trained)
    tuned, views = 0, len(setup.dataset.test) + len(setup.dataset.train) - labeled + training.epochs * held_out
    if schedule.has_finetune(cycle):
        batches = schedule.steps_per_epoch(learned)
        unlabeled = len(setup.dataset.train) - labeled
        size = unlabeled_batch_size(unlabeled, learned, training.batch_size, training.unlabeled_batch_limit)
        tuned = training.finetune_epochs * batches
        views += training.finetune_epochs * (
            learned + ((setup.num_weak_views + 1) * min(size * batches, unlabeled) if setup.ssl else 0)
        )
    return labeled, trained, steps, tuned, views


def unlabeled_views_per_step(setup: Setup, unlabeled: int) -> int:
    """How many views of unlabeled images pass the backbone in a joint step; those that a teacher sees aside."""
    method = setup.task_ssl
    return 0 if method is None else method.num_forward_views * task_batch_size(setup, unlabeled)


def has_module(setup: Setup) -> bool:
    """Whether the run has a loss prediction module."""
    return setup.build(0)[1] is not None


def measured_speeds(setup: Setup, steps: int = 4) -> tuple[float, float]:
    """Seconds an image takes in joint training and, as a third of that, in a frozen forward pass."""
    state = empty_state(setup)
    optimizer = joint_optimizer(setup, state)
    size = min(setup.training.batch_size, len(setup.dataset.train))
    views = setup.augmentation.plain(next(setup.dataset.train.batches([torch.arange(size)])))
    labels = torch.zeros(size, dtype=torch.int64, device=setup.device)
    since = 0.0
    for step in range(steps + 1):
        since = time.perf_counter() if step == 1 else since  # the first step warms up
        joint_step(setup, state, optimizer, JointInputs(views, labels, size), detached=False).tolist()
    seconds = (time.perf_counter() - since) / (steps * size)
    return seconds, seconds / 3
