"""The networks as one ONNX file, which is kept only if it says the same as they do."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslpl.models.frozen import FrozenBackbone
from sslpl.predict.predictions import make_predictor
from sslpl.predict.stream import ImageGroup
from sslpl.predict.trained import TrainedModel
from sslpl.types import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest value of an output, or of 1 where all are smaller


class ExportedModel(nn.Module):
    """Backbone and module as one network of pixels in 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.network = FrozenBackbone(trained.backbone, bfloat16=False).network
        self.module = deepcopy(trained.module)
        self.register_buffer("mean", torch.tensor(trained.signature.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.signature.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits, probabilities, embedding and, with a module, predicted loss of images [B, C, H, W]."""
        features = self.network((images - self.mean) / self.std)
        loss = () if self.module is None else (self.module(features.maps),)
        return features.logits, features.logits.softmax(dim=1), features.embedding, *loss


def check_packages() -> None:
    """UserError if a package that the export needs is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"--export: needs {', '.join(missing)}: pip install {' '.join(missing)}")


def onnx_model(trained: TrainedModel) -> bytes:
    """The networks as an ONNX file for batches of any size; class names and image size are in its metadata."""
    network, signature = ExportedModel(trained).eval().requires_grad_(False), trained.signature
    example = torch.rand(2, *signature.shape)
    network(example)  # what the networks keep between calls is made of real tensors, not of the exporter's
    outputs = ["logits", "probabilities", "embedding", *(["predicted_loss"] if trained.module is not None else [])]
    with quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({key: json.dumps(value) for key, value in signature._asdict().items()})
    return bytes(program.model_proto.SerializeToString())


def max_difference(model: bytes, trained: TrainedModel, images: Tensor) -> float:
    """The largest difference of an ONNX file's outputs from the predictions for images [B, C, H, W] uint8.

    Relative to the largest value of an output, or to 1; in one batch and for the first image alone.
    """
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    predict = make_predictor(trained, torch.device("cpu"))
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for batch in (images, images[:1]):
        ours = predict(ImageGroup([], batch, []))._asdict()
        theirs = session.run(names, {"images": batch.numpy().astype(np.float32) / 255})
        for name, value in zip(names, theirs, strict=True):
            gap = np.abs(ours[name] - value).max() / max(1.0, np.abs(ours[name]).max())
            worst = float(np.maximum(worst, gap))  # which keeps a NaN
    return worst


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter, which speaks of its own affairs."""
    level: Any = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
