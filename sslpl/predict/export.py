"""Export of the networks as one ONNX file, and the comparison of its outputs with theirs."""

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
TOLERANCE = 1e-4  # relative to the largest value of an output, or to 1 if all are smaller


class ExportedModel(nn.Module):
    """Backbone and module as one network whose input is pixels in 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.network = FrozenBackbone(trained.backbone, bfloat16=False).network
        self.module = deepcopy(trained.module)
        self.register_buffer("mean", torch.tensor(trained.signature.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.signature.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns logits, probabilities, embedding and, with a module, predicted loss of images [B, C, H, W]."""
        features = self.network((images - self.mean) / self.std)
        loss = () if self.module is None else (self.module(features.maps),)
        return features.logits, features.logits.softmax(dim=1), features.embedding, *loss


def check_packages() -> None:
    """Raises UserError if a package that the export needs is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"--export: needs {', '.join(missing)}: pip install {' '.join(missing)}")


def onnx_model(trained: TrainedModel) -> bytes:
    """Returns the networks as an ONNX file for any batch size, with the signature in its metadata."""
    network, signature = ExportedModel(trained).eval().requires_grad_(False), trained.signature
    example = torch.rand(2, *signature.shape)
    network(example)  # tensors that the networks cache must be real ones, not the exporter's
    outputs = ["logits", "probabilities", "embedding", *(["predicted_loss"] if trained.module is not None else [])]
    with silence_exporter():
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
    """Returns the largest difference between an ONNX file's outputs and the predictions for images [B, C, H, W] uint8.

    It is relative to the largest value of an output (at least 1), over one batch of all and the first image alone.
    """
    import onnxruntime  # an optional dependency

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    predict = make_predictor(trained, torch.device("cpu"))
    names = [output.name for output in session.get_outputs()]
    largest = 0.0
    for batch in (images, images[:1]):
        expected = predict(ImageGroup([], batch, []))._asdict()
        outputs = session.run(names, {"images": batch.numpy().astype(np.float32) / 255})
        for name, output in zip(names, outputs, strict=True):
            difference = np.abs(expected[name] - output).max() / max(1.0, np.abs(expected[name]).max())
            largest = float(np.maximum(largest, difference))  # unlike max(), propagates NaN
    return largest


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Suppresses the exporter's log lines, warnings and prints, which users cannot act on."""
    level: Any = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
