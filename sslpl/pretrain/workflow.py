"""Runs a pre-training from its config to its weights, with checkpoints and a nearest-neighbor evaluation."""

import io
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from sslpl.config import identity
from sslpl.config.build import backbone_builder, uses_bfloat16
from sslpl.config.plans import Plan
from sslpl.csv_text import csv_text
from sslpl.files import write_whole
from sslpl.models.starting_weights import HEAD
from sslpl.pretrain.simclr import (
    Pretraining,
    PretrainState,
    Row,
    SimCLR,
    embed_images,
    initial_pretrain_state,
    knn_accuracy,
    pretrain,
    projection_head,
)
from sslpl.pretrain.simclr_views import SimCLRViews
from sslpl.provenance import provenance
from sslpl.recording import checkpoint, lock
from sslpl.recording.folder import folder_run_id, open_folder, resumed_provenance
from sslpl.recording.progress import Progress, duration
from sslpl.recording.signals import Interrupted, handle_signals
from sslpl.runtime import Runtime
from sslpl.seeds import build_seeded
from sslpl.types import Dataset, RunInfo, UserError

WEIGHTS, COLUMNS = "backbone.pt", ("epoch", "loss", "knn_accuracy", "images_per_second")


def start_pretraining(
    config: identity.Config, dataset: Dataset, device: torch.device
) -> tuple[Pretraining, PretrainState]:
    """Returns a new pre-training and its initial state; UserError for a frozen backbone or fewer than 2 images."""
    options: SimCLR = instantiate(config["pretraining"])
    if config["backbone"].get("freeze"):
        raise UserError("backbone.freeze=true: must be false for pre-training, which trains the backbone")
    if len(dataset.train) < 2:
        raise UserError(f"dataset: must have at least 2 images to tell apart, not {len(dataset.train)}")
    views = SimCLRViews(
        dataset.mean,
        dataset.std,
        flip=dataset.flip,
        smallest_crop=options.smallest_crop,
        jitter=options.jitter,
        jitter_probability=options.jitter_probability,
        gray_probability=options.gray_probability,
    )
    build = partial(backbone_builder(config["backbone"], dataset.train.shape, pool=dataset), len(dataset.class_names))
    backbone: Any = build_seeded(build, config["seed"], "pretraining backbone")
    bfloat16 = uses_bfloat16(options.precision, device, backbone)
    task = Pretraining(options, dataset.train, views, config["seed"], device, bfloat16)
    head = partial(projection_head, backbone.channels[-1], options.projection)
    projection = build_seeded(head, task.seed, "pretraining projection")
    return task, initial_pretrain_state(backbone, projection, options, device)


def print_estimate(task: Pretraining, state: PretrainState, folder: Path) -> None:
    """Prints the size of a pre-training and its time, estimated from a few timed steps."""
    start, images = time.perf_counter(), 0
    for step in pretrain(task, state):
        images += step.images
        if images >= 4 * task.options.batch_size or step.metrics is not None:
            break
    seconds = (time.perf_counter() - start) / images * task.options.epochs * len(task.images)
    print(f"{task.options.epochs:,} epochs of {batches_per_epoch(task):,} steps, {len(task.images):,} images")
    print(f"estimated time {duration(seconds)} from a few timed steps; nothing was written\nfolder {folder}")


def batches_per_epoch(task: Pretraining) -> int:
    """Returns the number of whole batches in the pool; a smaller pool is one batch."""
    return max(1, len(task.images) // task.options.batch_size)


def run_pretraining(plan: Plan, runtime: Runtime, dataset: Dataset, task: Pretraining, state: PretrainState) -> None:
    """Trains from the last checkpoint, if there is one, and saves the weights."""
    facts = {"choices": plan.choices, "precision": "bfloat16" if task.bfloat16 else "float32", "compiled": False}
    origin, changes = resumed_provenance(plan.folder, provenance(task.device) | facts)
    with Progress(runtime.progress, cycles=0) as progress:
        run_id = folder_run_id(plan.config, origin)
        open_folder(RunInfo(run_id, plan.folder.name, plan.method_name, plan.folder, plan.config, origin))
        for line in resume_checkpoint(plan.folder, state) + (changes if state.history else []):
            progress.message(line)
        if not state.history:
            state.history.append({"epoch": 0, "knn_accuracy": knn_test_accuracy(task, state, dataset)})
        train_and_save(plan.folder, progress, runtime.checkpoint_minutes, task, state)
        state.history[-1]["knn_accuracy"] = knn_test_accuracy(task, state, dataset)
    save_weights(plan.folder, state)
    if runtime.progress != "none":
        before, after = (format_share(state.history[row]["knn_accuracy"]) for row in (0, -1))
        print(f"test images that their nearest neighbors classify rightly: {before} at first, {after} now")


def resume_checkpoint(folder: Path, state: PretrainState) -> list[str]:
    """Restores the last checkpoint, if there is one, and returns lines to print; UserError if it does not fit."""
    saved, warning = checkpoint.load(folder / "checkpoint")
    lines = [] if warning is None else [warning]
    if saved is None:
        return lines
    try:
        state.load(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its checkpoint does not fit; remove the folder to begin anew") from error
    return [*lines, f"resumed at epoch {state.epoch + 1}, step {state.step + 1}"]


def train_and_save(folder: Path, progress: Progress, minutes: float, task: Pretraining, state: PretrainState) -> None:
    """Trains to the end and saves every `minutes`; raises Interrupted, once saved, after a signal."""
    signals: list[int] = []
    epochs, steps = task.options.epochs, batches_per_epoch(task)
    progress.phase("pre-training", total=epochs * steps, done=state.epoch * steps + state.step)
    progress.epoch(min(state.epoch, epochs - 1), epochs)
    saved_at = epoch_start = time.monotonic()
    images = 0
    with handle_signals(signals.append):
        for step in pretrain(task, state):
            images += step.images
            progress.advance(1, step.images)
            if step.metrics is not None:
                now = time.monotonic()
                state.history.append(
                    {"epoch": state.epoch, **step.metrics, "images_per_second": images / (now - epoch_start)}
                )
                write_whole(folder / "metrics.csv", pretraining_csv(state.history))
                progress.epoch(min(state.epoch, epochs - 1), epochs)
                epoch_start, images = now, 0
            if signals or time.monotonic() - saved_at >= 60 * minutes:
                checkpoint.save(folder / "checkpoint", state.to_dict())
                saved_at = time.monotonic()
            if signals:
                raise Interrupted(signals[0])


def knn_test_accuracy(task: Pretraining, state: PretrainState, dataset: Dataset) -> float | None:
    """Returns the test accuracy of a nearest-neighbor classifier, the only use of labels in a pre-training."""
    labels = dataset.train_labels if dataset.true_labels is None else dataset.true_labels
    labeled = (labels >= 0).nonzero().flatten()
    train, test = (embed_images(task, state.backbone, images) for images in (dataset.train, dataset.test))
    return knn_accuracy(train[labeled.to(train.device)], labels[labeled], test, dataset.test_labels)


def save_weights(folder: Path, state: PretrainState) -> None:
    """Saves the weights without the head, which was not trained, and removes checkpoint and lock."""
    write_whole(folder / "metrics.csv", pretraining_csv(state.history))
    weights = {name: value.cpu().contiguous() for name, value in state.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({name: value for name, value in weights.items() if not name.startswith(HEAD)}, buffer)
    write_whole(folder / WEIGHTS, buffer.getvalue())
    checkpoint.discard(folder / "checkpoint")
    with suppress(OSError):
        (folder / "checkpoint").rmdir()
    lock.remove_lock(folder)


def pretraining_csv(history: Sequence[Row]) -> str:
    """Returns metrics.csv: a row per epoch, in which epoch 0 is before the first step."""
    return csv_text(COLUMNS, ([row.get(column) for column in COLUMNS] for row in history))


def format_share(share: float | int | None) -> str:
    """Formats a share as a percentage, or as - if it is None."""
    return "-" if share is None else f"{share:.2%}"
