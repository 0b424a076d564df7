"""A run's folder: whose it is, what is written into it before a run, and where a resumed run differs from its start."""

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslpl import __version__
from sslpl.config.identity import Config, canonical, run_id, scientific_config
from sslpl.files import write_json, write_whole
from sslpl.types import RunInfo, UserError

# Of provenance: a run that is resumed under others says so.
COMPARED_FACTS = ("git", "device_name", "threads", "processes", "precision", "compiled")


def check_folder(folder: Path, config: Config) -> None:
    """UserError if a run's folder was written by another version, or holds the files of another config."""
    written, origin = folder / "config.yaml", folder / "provenance.json"
    advice = "remove the folder, or choose another runtime.output_dir"
    try:
        there = scientific_config(OmegaConf.to_container(OmegaConf.load(written))) if written.exists() else None  # type: ignore[arg-type]
        version = json.loads(origin.read_text())["versions"]["sslpl"] if origin.exists() else None
    except Exception as error:
        raise UserError(f"{folder}: its config.yaml or provenance.json cannot be read; {advice}") from error
    if there is not None and canonical(there) != canonical(scientific_config(config)):
        raise UserError(f"{folder}: its config.yaml is that of another run; {advice}")
    if version not in (None, __version__):
        raise UserError(f"{folder}: written by sslpl {version}, this is {__version__}; {advice}")


def changed_weights(folder: Path, config: Config) -> str | None:
    """The line about an earlier run beside a folder that differs by the content of the same file of weights alone."""
    file, beside = config["backbone"].get("weights"), "weights_fingerprint"
    if config["backbone"].get(beside) is None or folder.exists():
        return None
    for written in sorted(folder.parent.glob(f"seed{config['seed']}-*/config.yaml")):
        with suppress(Exception):  # whatever lies there
            other: Config = OmegaConf.to_container(OmegaConf.load(written))  # type: ignore[assignment]
            backbone = other["backbone"] | {beside: config["backbone"][beside]}
            if other["backbone"]["weights"] == file and run_id(other | {"backbone": backbone}) == run_id(config):
                return f"backbone.weights={file}: has changed since {written.parent} began; this is another run"
    return None


def make_folder(folder: Path, output_dir: str) -> None:
    """Makes a run's folder; UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runtime.output_dir={output_dir}: cannot be written ({error.strerror or error})") from error


def open_folder(run: RunInfo) -> None:
    """Writes what a run is and where it comes from, and clears what an earlier life has left."""
    write_whole(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(run.config))))
    write_json(run.folder / "provenance.json", run.provenance)
    for leftover in (run.folder / "error.log", *run.folder.rglob(".*.partial-*")):
        leftover.unlink(missing_ok=True)


def resumed_provenance(folder: Path, now: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a run's provenance becomes, and what differs from its start: a line each.

    Its `run_token` is drawn when the folder is new and kept with it: what tells the run from others of its config.
    """
    path = folder / "provenance.json"
    token = {"run_token": secrets.token_hex(4)}
    if not path.exists():
        return now | token, []
    first: dict[str, Any] = json.loads(path.read_text())
    changes = [
        f"this run began with {key} {first.get(key)}: it goes on with {now[key]}"
        for key in COMPARED_FACTS
        if first.get(key, now[key]) != now[key]
    ]
    return token | first | {"resumed": [*first.get("resumed", []), now]}, changes


def folder_run_id(config: Config, origin: Mapping[str, Any]) -> str:
    """The id of a config's run in one folder: the config's, and the folder's `run_token` if it has one."""
    return "-".join(filter(None, (run_id(config), origin.get("run_token"))))
