"""The command python -m sslpl.embed dataset=... backbone=... backbone.weights=... --output FILE."""

import argparse
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sslpl.config.build import backbone_builder, read_dataset, with_fingerprints
from sslpl.config.frozen import build_embedder, has_images
from sslpl.config.identity import Config
from sslpl.config.validation import check_groups, typed_config
from sslpl.embed.output import check_output, write_dataset
from sslpl.recording.progress import Progress
from sslpl.run.errors import BAD_INPUT, ErrorReport, SweepStopped
from sslpl.run.hydra_command import run_hydra_command
from sslpl.runtime import Runtime
from sslpl.seeds import build_seeded
from sslpl.types import UserError

GROUPS = ("dataset", "backbone", "runtime")
TOP_KEYS = (*GROUPS, "seed")


def main() -> None:
    """Embeds a dataset; exit code 0 once the file exists, 2 for bad input, 1 for a failure; see --help."""
    output = parse_output()

    def action(cfg: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise SweepStopped(ErrorReport("--multirun: must not be given; one command embeds one dataset", BAD_INPUT))
        embed(checked_config(cfg), output)

    run_hydra_command("embed", action, TOP_KEYS)


def parse_output() -> Path | None:
    """Takes --output from the command line, whose rest is Hydra's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output", type=Path)
    options, sys.argv[1:] = parser.parse_known_args()
    output: Path | None = options.output
    return output


def checked_config(cfg: DictConfig) -> Config:
    """Returns the resolved config with its fingerprints; UserError for the first mistake."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config = {key: value for key, value in config.items() if key != "hydra"}
    check_groups(config, GROUPS)
    config = typed_config(config)
    if not has_images(config):
        raise UserError("dataset=embeddings: must be a dataset of images")
    if open_set := config["dataset"].get("open_set"):
        raise UserError(f"dataset.open_set={open_set}: must be 0.0; set it in the runs on the embeddings")
    if config["backbone"].get("weights") is None:
        raise UserError(
            "backbone.weights=null: must be imagenet or a file of weights, because embeddings of random weights are "
            "not informative"
        )
    return with_fingerprints(config)


def embed(config: Config, output: Path | None) -> None:
    """Writes the embeddings of a config's dataset to a file or folder, or continues a killed process's."""
    path = check_output(output)
    runtime: Runtime = instantiate(config["runtime"])
    device = runtime.prepare()
    dataset = read_dataset(config["dataset"], config["seed"])
    runtime.set_threads(dataset.train.shape)
    build = backbone_builder(config["backbone"] | {"freeze": True}, dataset.train.shape, pool=dataset)
    network = build_seeded(lambda: build(len(dataset.class_names)), config["seed"], "embedding backbone").to(device)
    embedder = build_embedder(config["backbone"], network, dataset, device, bfloat16=False)
    with Progress(runtime.progress, cycles=0) as progress:
        written = write_dataset(path, embedder, dataset, progress)
    train, width = len(dataset.train), embedder.width
    size = f"{train:,} and {len(dataset.test):,} embeddings of {width:,} dimensions"
    print(f"{'' if written else 'finished already: '}{path}: {size}")
    print(f"use it: python run.py experiment=embeddings dataset.file={path}", flush=True)


if __name__ == "__main__":
    main()
