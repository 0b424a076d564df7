"""Oracles: one returns the labels of the dataset immediately, one waits for annotators' labels in files."""

from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from sslpl.oracle.label_request import LABELS, TABLE, batch_folder, image_names, write_request
from sslpl.oracle.label_studio import export_rows
from sslpl.oracle.label_table import LabelRow, read_table, validate_labels
from sslpl.types import (
    UNLABELED,
    Dataset,
    InvalidLabels,
    LabelAnswer,
    LabelRequest,
    UserError,
    WaitingForLabels,
)

EXPORT = "label_studio_export.json"


@dataclass(frozen=True)
class SimulatedOracle:
    """Simulates an annotator with the labels that come with the dataset."""

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset unchanged; UserError if an image has no label."""
        missing = int((dataset.train_labels == UNLABELED).sum())
        if missing:
            raise UserError(
                f"oracle=simulated: {missing:,} of {len(dataset.train):,} images of the pool have no label to tell "
                "(those in unlabeled/, or empty in a CSV file); choose oracle=file, which asks for them"
            )
        return dataset

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """Returns the dataset's labels of the selected images; those of no class are rejected."""
        return LabelAnswer(request.dataset.train_labels[request.selection.index], request.class_names)


@dataclass(frozen=True)
class FileOracle:
    """Writes what to label into the run's folder, and reads annotators' labels from there."""

    partial: bool = False  # images without a label go back to the pool
    new_classes: bool = False  # a label may name a class that is not known yet

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset; if every image is labeled, the pool's labels are removed to rehearse the workflow."""
        return hidden_labels(dataset)

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """Returns the labels in the batch's folder; WaitingForLabels if there are none, InvalidLabels on errors."""
        folder = batch_folder(request)
        found = [path for path in (folder / LABELS, folder / EXPORT) if path.exists()]
        if not found:
            folder = write_request(request)
            images = len(request.selection.index)
            raise WaitingForLabels(
                f"waiting for the labels of {images:,} image{'s' * (images > 1)}: fill in the column label of "
                f"{folder / TABLE}, save it as {LABELS} beside it (or a JSON export of Label Studio as {EXPORT}), "
                "and run the same command again"
            )
        if len(found) > 1:
            raise InvalidLabels(f"{folder}: must hold {LABELS} or {EXPORT}, has both: remove one of them")
        (file,) = found
        rows: list[LabelRow] = read_table(file) if file.name == LABELS else export_rows(file)
        requested = image_names(request.dataset, request.selection.index)
        labels, names = validate_labels(rows, file, requested, request.class_names, self.partial, self.new_classes)
        source = str(file.relative_to(request.folder))
        return LabelAnswer(torch.tensor(labels), names, source, datetime.now(UTC).isoformat(timespec="seconds"))


def hidden_labels(dataset: Dataset) -> Dataset:
    """Returns the dataset for people to label: without the pool's labels if every image is labeled."""
    if bool((dataset.train_labels < 0).any()):
        return dataset
    return dataset._replace(train_labels=torch.full_like(dataset.train_labels, UNLABELED), true_labels=None)
