"""Predictions for image files, and the two files that they are written to."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sslpl.csv_text import csv_text
from sslpl.data.augmentation import Augmentation
from sslpl.files import write_whole
from sslpl.learn.inference import forward_images
from sslpl.models.frozen import FrozenBackbone
from sslpl.predict.stream import ImageGroup
from sslpl.predict.trained import TrainedModel
from sslpl.recording.checkpoint import ModelSignature

Floats = NDArray[np.float32]


class FilePredictions(NamedTuple):
    """Outputs of the networks for N image files, in float32."""

    paths: list[Path]
    logits: Floats  # [N, C]
    probabilities: Floats  # [N, C]
    predicted_loss: Floats  # [N], NaN without a loss prediction module
    embedding: Floats  # [N, D]


def make_predictor(trained: TrainedModel, device: torch.device) -> Callable[[ImageGroup], FilePredictions]:
    """Returns a function that predicts a group of images on a device like the run's evaluation, but in float32."""
    _, shape, _, mean, std = trained.signature
    normalize = Augmentation(shape, mean, std, flip=False, padding=0, cutout=0, device=device).normalize
    network = FrozenBackbone(trained.backbone.to(device), bfloat16=False).network
    module = None if trained.module is None else trained.module.to(device).eval()

    @torch.inference_mode()
    def predict(group: ImageGroup) -> FilePredictions:
        logits, embedding, loss = forward_images(network, module, normalize(group.images.to(device)))
        loss = torch.full((len(logits),), torch.nan) if loss is None else loss
        values = (logits, logits.softmax(dim=1), loss, embedding)
        return FilePredictions(group.paths, *(value.float().cpu().numpy() for value in values))

    return predict


def concatenate_predictions(parts: Iterable[FilePredictions]) -> FilePredictions:
    """Concatenates the predictions of all groups."""
    paths, *columns = zip(*parts, strict=True)
    return FilePredictions([path for part in paths for path in part], *(np.concatenate(column) for column in columns))


def write_tables(predicted: FilePredictions, signature: ModelSignature, images: Path, folder: Path) -> None:
    """Writes `predictions.csv` and `predictions.npz` to `folder`, with paths relative to the folder `images`."""
    paths = [path.relative_to(images).as_posix() for path in predicted.paths]
    write_whole(folder / "predictions.csv", predictions_csv(predicted, signature.class_names, paths))
    write_whole(folder / "predictions.npz", predictions_npz(predicted, signature.class_names, paths))


def predictions_csv(predicted: FilePredictions, class_names: tuple[str, ...], paths: list[str]) -> str:
    """Returns a row per image: path, predicted class, its probability, predicted loss, all class probabilities."""
    header = ["path", "class", "probability", "predicted_loss", *(f"p_{name}" for name in class_names)]
    labels, rows = predicted.logits.argmax(axis=1), []
    for path, label, loss, row in zip(paths, labels, predicted.predicted_loss, predicted.probabilities, strict=True):
        cells = [f"{probability:.6g}" for probability in row.tolist()]
        rows.append([path, class_names[label], cells[label], "" if np.isnan(loss) else f"{loss:.6g}", *cells])
    return csv_text(header, rows)


def predictions_npz(predicted: FilePredictions, class_names: tuple[str, ...], paths: list[str]) -> bytes:
    """Returns an .npz file of `paths`, `classes`, `logits`, `probabilities`, `predicted_loss` and `embedding`."""
    file = io.BytesIO()
    arrays = {key: value for key, value in predicted._asdict().items() if key != "paths"}
    np.savez(file, paths=np.array(paths), classes=np.array(class_names), **arrays)
    return file.getvalue()
