"""What people are given to label: a table, a contact sheet, tasks for Label Studio, pictures if there are no files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from sslpl.csv_text import csv_text
from sslpl.files import write_whole
from sslpl.oracle import contact_sheet, label_studio
from sslpl.types import Dataset, LabelRequest

TABLE, LABELS, SHEET, TASKS = "to_label.csv", "labels.csv", "contact_sheet.png", "label_studio.json"
INTERFACE, PICTURES = "label_studio.xml", "images"
COLUMNS = ("path", "label", "predicted", "probability", "score", "reason")
Guess = tuple[str, float] | None  # a class and its probability; None: nothing is trained yet


def batch_folder(request: LabelRequest) -> Path:
    """Where a batch is asked for and answered."""
    return request.folder / "labeling" / f"cycle{request.cycle}"


def image_names(dataset: Dataset, index: Tensor) -> list[str]:
    """How people know the images at some positions: by their files, or by names after their positions."""
    return [dataset.paths[i] if dataset.paths else f"{i:06d}.png" for i in index.tolist()]


def write_request(request: LabelRequest) -> Path:
    """Writes what is not there yet of a batch; its folder. What people may have filled in is never written again."""
    folder, names = batch_folder(request), image_names(request.dataset, request.selection.index)
    move_aside(folder, names)
    guessed: list[Guess] = []

    def guesses() -> list[Guess]:
        if not guessed:
            guessed.extend(best_guesses(request))
        return guessed

    files = names if request.dataset.paths else [f"{PICTURES}/{name}" for name in names]
    content: dict[str, Callable[[], str | bytes]] = {
        SHEET: lambda: contact_sheet.png(draw_sheet(request, names, guesses())),
        INTERFACE: lambda: label_studio.interface(request.class_names),
        TASKS: lambda: label_studio.tasks(names, files, guesses()),
        TABLE: lambda: label_table_csv(request, names, guesses()),
    }
    if not request.dataset.paths:
        write_pictures(request, folder / PICTURES, names)
    for name, written in content.items():
        if not (folder / name).exists():
            write_whole(folder / name, written())
    return folder


def move_aside(folder: Path, names: Sequence[str]) -> None:
    """Renames the folder of another batch, with all that is in it: a run that began anew may pick other images."""
    try:
        there = [task["data"]["path"] for task in json.loads((folder / TASKS).read_text("utf-8"))]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if there != list(names):
        number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}-before-{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}-before-{number}"))


def best_guesses(request: LabelRequest) -> list[Guess]:
    """The most likely class of each image and its probability."""
    if request.probabilities is None:
        return [None] * len(request.selection.index)
    highest, label = request.probabilities().max(dim=1)
    return [(request.class_names[c], p) for c, p in zip(label.tolist(), highest.tolist(), strict=True)]


def strategy_name(strategy: Any) -> str:
    """What a query strategy is called, with its scorer and selector where it is made of these."""
    arguments = getattr(strategy, "keywords", {})
    parts = [strategy_name(arguments[key]) for key in ("selector", "scorer") if callable(arguments.get(key))]
    function = getattr(strategy, "func", strategy)
    return " of ".join(parts) if parts else str(getattr(function, "__name__", type(function).__name__))


def label_table_csv(request: LabelRequest, names: Sequence[str], guesses: Sequence[Guess]) -> str:
    """The table to fill in: its column label is empty."""
    rows = []
    for name, guess, score in zip(names, guesses, request.selection.score.tolist(), strict=True):
        known, rounded = score == score, f"{score:.6g}"
        guessed = ("", "") if guess is None else (guess[0], f"{guess[1]:.4f}")
        reason = f"{request.reason}: score {rounded}" if known else request.reason
        rows.append([name, "", *guessed, rounded if known else "", reason])
    text = csv_text(COLUMNS, rows)
    return text if text.isascii() else "\ufeff" + text  # Excel reads other letters wrong without the mark


def draw_sheet(request: LabelRequest, names: Sequence[str], guesses: Sequence[Guess]) -> Image:
    """The contact sheet: each image with its row in the table and what the model says."""
    said = [name if guess is None else f"{guess[0]} {guess[1]:.0%}" for name, guess in zip(names, guesses, strict=True)]
    captions = [f"{row}: {caption}" for row, caption in enumerate(said, start=2)]
    return contact_sheet.contact_sheet(images_at(request), captions)


def write_pictures(request: LabelRequest, folder: Path, names: Sequence[str]) -> None:
    """The images as files, where the dataset has none."""
    missing = [row for row, name in enumerate(names) if not (folder / name).exists()]
    if missing:
        for row, pixels in zip(missing, images_at(request, torch.tensor(missing)), strict=True):
            write_whole(folder / names[row], contact_sheet.png(contact_sheet.legible(contact_sheet.picture(pixels))))


def images_at(request: LabelRequest, rows: Tensor | None = None) -> list[Tensor]:
    """The picked images, or those at some rows, [C, H, W] uint8 each."""
    index = request.selection.index if rows is None else request.selection.index[rows]
    return [image for batch in request.dataset.train.batches(torch.split(index, 256)) for image in batch.cpu()]
