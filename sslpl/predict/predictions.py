"""Predictions for image files, and the two tables that they are written into."""

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
    """What the networks say of N image files, in float32."""

    paths: list[Path]
    logits: Floats  # [N, C]
    probabilities: Floats  # [N, C]
    predicted_loss: Floats  # [N], NaN without a loss prediction module
    embedding: Floats  # [N, D]


def make_predictor(trained: TrainedModel, device: torch.device) -> Callable[[ImageGroup], FilePredictions]:
    """What predicts a group of images on a device, as the run's evaluation does, but always in float32."""
    _, shape, _, mean, std = trained.signature
    plain = Augmentation(shape, mean, std, flip=False, padding=0, cutout=0, device=device).plain
    network = FrozenBackbone(trained.backbone.to(device), bfloat16=False).network
    module = None if trained.module is None else trained.module.to(device).eval()

    @torch.inference_mode()
    def predict(group: ImageGroup) -> FilePredictions:
        logits, embedding, loss = forward_images(network, module, plain(group.images.to(device)))
        loss = torch.full((len(logits),), torch.nan) if loss is None else loss
        values = (logits, logits.softmax(dim=1), loss, embedding)
        return FilePredictions(group.paths, *(value.float().cpu().numpy() for value in values))

    return predict


def concatenate_predictions(parts: Iterable[FilePredictions]) -> FilePredictions:
    """The predictions of all groups as one."""
    paths, *columns = zip(*parts, strict=True)
    return FilePredictions([path for part in paths for path in part], *(np.concatenate(column) for column in columns))


def write_tables(predicted: FilePredictions, signature: ModelSignature, images: Path, folder: Path) -> None:
    """Writes `predictions.csv` and `predictions.npz`; paths are relative to the folder of the images."""
    paths = [path.relative_to(images).as_posix() for path in predicted.paths]
    write_whole(folder / "predictions.csv", predictions_csv(predicted, signature.class_names, paths))
    write_whole(folder / "predictions.npz", predictions_npz(predicted, signature.class_names, paths))


def predictions_csv(predicted: FilePredictions, class_names: tuple[str, ...], paths: list[str]) -> str:
    """A row per image: path, most likely class, its probability, predicted loss, the probability of every class."""
    header = ["path", "class", "probability", "predicted_loss", *(f"p_{name}" for name in class_names)]
    guess, rows = predicted.logits.argmax(axis=1), []
    for path, best, loss, row in zip(paths, guess, predicted.predicted_loss, predicted.probabilities, strict=True):
        numbers = [f"{value:.6g}" for value in row.tolist()]
        rows.append([path, class_names[best], numbers[best], "" if np.isnan(loss) else f"{loss:.6g}", *numbers])
    return csv_text(header, rows)


def predictions_npz(predicted: FilePredictions, class_names: tuple[str, ...], paths: list[str]) -> bytes:
    """Arrays `paths`, `classes`, `logits`, `probabilities`, `predicted_loss`, `embedding`, as numpy reads them."""
    file = io.BytesIO()
    arrays = {key: value for key, value in predicted._asdict().items() if key != "paths"}
    np.savez(file, paths=np.array(paths), classes=np.array(class_names), **arrays)
    return file.getvalue()
