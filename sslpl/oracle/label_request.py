"""Writes a batch for annotators: a table, a contact sheet, Label Studio tasks, and pictures if there are no files."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from sslpl.csv_text import csv_text
from sslpl.data.embeddings import Embeddings
from sslpl.files import write_whole
from sslpl.oracle import contact_sheet, label_studio
from sslpl.types import Dataset, LabelRequest

TABLE, LABELS, SHEET, TASKS = "to_label.csv", "labels.csv", "contact_sheet.png", "label_studio.json"
INTERFACE, PICTURES = "label_studio.xml", "images"
COLUMNS = ("path", "label", "predicted", "probability", "score", "reason")
Prediction = tuple[str, float] | None  # class name and probability; None: no model is trained yet


def batch_folder(request: LabelRequest) -> Path:
    """Returns the folder of a batch: its request and the annotators' labels."""
    return request.folder / "labeling" / f"cycle{request.cycle}"


def image_names(dataset: Dataset, index: Tensor) -> list[str]:
    """Returns the file names of the images at the positions `index`, or names made of the positions."""
    return [dataset.paths[i] if dataset.paths else f"{i:06d}.png" for i in index.tolist()]


def write_request(request: LabelRequest) -> Path:
    """Writes the missing files of a batch and returns its folder; files that annotators may have edited are kept."""
    folder, names = batch_folder(request), image_names(request.dataset, request.selection.index)
    move_aside(folder, names)
    predictions = cache(lambda: top_predictions(request))
    files = names if request.dataset.paths else [f"{PICTURES}/{name}" for name in names]
    content: dict[str, Callable[[], str | bytes]] = {
        INTERFACE: lambda: label_studio.interface(request.class_names),
        TASKS: lambda: label_studio.tasks(names, files, predictions()),
        TABLE: lambda: label_table_csv(request, names, predictions()),
    }
    if not isinstance(request.dataset.train, Embeddings):
        content = {SHEET: lambda: contact_sheet.png(draw_sheet(request, names, predictions()))} | content
    if not request.dataset.paths:
        write_pictures(request, folder / PICTURES, names)
    for name, render in content.items():
        if not (folder / name).exists():
            write_whole(folder / name, render())
    return folder


def move_aside(folder: Path, names: Sequence[str]) -> None:
    """Renames the folder if it belongs to another batch: a restarted run may select other images."""
    try:
        previous = [task["data"]["path"] for task in json.loads((folder / TASKS).read_text("utf-8"))]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if previous != list(names):
        number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}-before-{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}-before-{number}"))


def top_predictions(request: LabelRequest) -> list[Prediction]:
    """Returns the most likely class of each image and its probability, None without a trained model."""
    if request.probabilities is None:
        return [None] * len(request.selection.index)
    highest, label = request.probabilities().max(dim=1)
    return [(request.class_names[c], p) for c, p in zip(label.tolist(), highest.tolist(), strict=True)]


def strategy_name(strategy: Any) -> str:
    """Returns the name of a query strategy, or those of its selector and scorer if it is composed of them."""
    arguments = getattr(strategy, "keywords", {})
    parts = [strategy_name(arguments[key]) for key in ("selector", "scorer") if callable(arguments.get(key))]
    function = getattr(strategy, "func", strategy)
    return " of ".join(parts) if parts else str(getattr(function, "__name__", type(function).__name__))


def label_table_csv(request: LabelRequest, names: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Formats the table to fill in, with an empty column `label`."""
    rows = []
    for name, prediction, score in zip(names, predictions, request.selection.score.tolist(), strict=True):
        score_text = "" if isnan(score) else f"{score:.6g}"
        predicted = ("", "") if prediction is None else (prediction[0], f"{prediction[1]:.4f}")
        reason = f"{request.reason}: score {score_text}" if score_text else request.reason
        rows.append([name, "", *predicted, score_text, reason])
    text = csv_text(COLUMNS, rows)
    return text if text.isascii() else "\ufeff" + text  # without a byte order mark Excel misreads other letters


def draw_sheet(request: LabelRequest, names: Sequence[str], predictions: Sequence[Prediction]) -> Image:
    """Draws the contact sheet: each image with its row in the table and the model's prediction, or its name."""
    pairs = zip(names, predictions, strict=True)
    texts = [name if prediction is None else f"{prediction[0]} {prediction[1]:.0%}" for name, prediction in pairs]
    captions = [f"{row}: {text}" for row, text in enumerate(texts, start=2)]
    return contact_sheet.contact_sheet(images_at(request), captions)


def write_pictures(request: LabelRequest, folder: Path, names: Sequence[str]) -> None:
    """Writes the images that have no picture file yet."""
    missing = [row for row, name in enumerate(names) if not (folder / name).exists()]
    if missing:
        for row, pixels in zip(missing, images_at(request, torch.tensor(missing)), strict=True):
            write_whole(folder / names[row], contact_sheet.png(contact_sheet.enlarge(contact_sheet.picture(pixels))))


def images_at(request: LabelRequest, rows: Tensor | None = None) -> list[Tensor]:
    """Returns the selected images, or those at some rows of the selection, [C, H, W] uint8 each."""
    index = request.selection.index if rows is None else request.selection.index[rows]
    return [image for batch in request.dataset.train.batches(torch.split(index, 256)) for image in batch.cpu()]
