"""Loads the networks of a finished run for prediction, without its dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from sslpl.config.build import backbone_builder
from sslpl.config.frozen import is_unaugmented
from sslpl.models.embedding_head import EmbeddingProbe, embedding_width
from sslpl.predict.trust import check_targets
from sslpl.recording.checkpoint import ModelSignature, SavedModel, load_model
from sslpl.recording.status import read_status
from sslpl.types import UserError


class TrainedModel(NamedTuple):
    """Networks with the final weights of a run, on the CPU, and their signature."""

    backbone: nn.Module
    module: nn.Module | None
    signature: ModelSignature


def load_trained_run(folder: Path, trusted: Sequence[str] = ()) -> TrainedModel:
    """Returns the networks of the run in `folder`, whose classes are sslpl's or defined in `trusted` packages.

    UserError if the folder holds no run, an unfinished one, a damaged one, or one with networks of other packages.
    """
    config_file, state = folder / "config.yaml", read_status(folder).get("state")
    if not config_file.is_file() or state is None:
        raise UserError(f"{folder}: no run's folder, such as outputs/digits/sslpm/seed0-1a2b3c4d")
    if state != "finished":
        raise UserError(f"{folder}: not finished ({state}); run its command again to resume it")
    config = read_config(config_file)
    try:
        check_targets(config, trusted)
    except UserError as error:
        raise UserError(f"{config_file}: {error}") from error
    if (config.get("dataset") or {}).get("_target_") == "sslpl.data.embeddings":
        raise UserError(f"{folder}: trained on embeddings, and this command predicts images")
    weights = load_model(folder / "checkpoint")
    try:
        return build_trained(config, weights)
    except Exception as error:  # a class of the user's own may raise anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{folder}: its weights do not fit the networks of its config.yaml ({reason})") from error


def read_config(path: Path) -> dict[str, Any]:
    """Returns a run's config without resolving it; UserError if the file holds no config."""
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # a damaged file raises exceptions of many types
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold the config of a run")
    return config


def build_trained(config: dict[str, Any], weights: SavedModel) -> TrainedModel:
    """Builds the networks that a config describes and loads their weights."""
    signature = weights.signature
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, then replaced
        backbone: Any = backbone_builder(config["backbone"], signature.shape, weights=False)(len(signature.class_names))
        if is_unaugmented(config):  # its module reads the embedding alone
            backbone = EmbeddingProbe(backbone.network, embedding_width(backbone, signature.shape))
        module = instantiate(config["module"])(channels=backbone.channels)
    backbone.load_state_dict(weights.backbone)
    if module is not None:
        module.load_state_dict(weights.module)
    return TrainedModel(backbone, module, signature)
