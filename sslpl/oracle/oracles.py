"""Oracles: labels that come with the dataset, told at once, or people's, waited for in files."""

from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from sslpl.oracle.label_request import LABELS, TABLE, batch_folder, image_names, write_request
from sslpl.oracle.label_studio import export_rows
from sslpl.oracle.label_table import LabelRow, read_table, validate_labels
from sslpl.types import Dataset, InvalidLabels, LabelAnswer, LabelRequest, UserError, WaitingForLabels

EXPORT = "label_studio_export.json"


@dataclass(frozen=True)
class SimulatedOracle:
    """Tells the labels that come with the dataset."""

    def prepare(self, dataset: Dataset) -> Dataset:
        """The dataset as it is; UserError if an image has no label."""
        missing = int((dataset.train_labels < 0).sum())
        if missing:
            raise UserError(
                f"oracle=simulated: {missing:,} of {len(dataset.train):,} images of the pool have no label to tell "
                "(those in unlabeled/, or empty in a CSV file); choose oracle=file, which asks for them"
            )
        return dataset

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """The hidden labels."""
        return LabelAnswer(request.dataset.train_labels[request.selection.index], request.class_names)


@dataclass(frozen=True)
class FileOracle:
    """Asks people: writes what to label into the run's folder, and reads their labels from there."""

    partial: bool = False  # images without a label go back to the pool
    new_classes: bool = False  # a label may be a class that was not known before

    def prepare(self, dataset: Dataset) -> Dataset:
        """The dataset; where every image has a label they are forgotten, and the run is a rehearsal."""
        if bool((dataset.train_labels < 0).any()):
            return dataset
        return dataset._replace(train_labels=torch.full_like(dataset.train_labels, -1), true_labels=None)

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """The labels in the batch's folder: Waiting if there are none yet, LabelsRefused if they have mistakes."""
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
        rows: list[LabelRow] = read_table(found[0]) if found[0].name == LABELS else export_rows(found[0])
        asked = image_names(request.dataset, request.selection.index)
        labels, names = validate_labels(rows, found[0], asked, request.class_names, self.partial, self.new_classes)
        source = str(found[0].relative_to(request.folder))
        return LabelAnswer(torch.tensor(labels), names, source, datetime.now(UTC).isoformat(timespec="seconds"))
