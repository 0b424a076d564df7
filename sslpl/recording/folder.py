"""A run's folder: which run owns it, which files describe the run, and what has changed when the run is resumed."""

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

# Keys of provenance whose changes a resumed run reports.
COMPARED_FACTS = ("git", "device_name", "threads", "processes", "precision", "compiled")


def check_folder(folder: Path, config: Config) -> None:
    """Raises UserError if a run's folder belongs to another config or was written by another version."""
    config_file, provenance_file = folder / "config.yaml", folder / "provenance.json"
    advice = "remove the folder, or choose another runtime.output_dir"
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(config_file)) if config_file.exists() else None
        version = json.loads(provenance_file.read_text())["versions"]["sslpl"] if provenance_file.exists() else None
        same = written is None or canonical(scientific_config(written)) == canonical(scientific_config(config))
    except Exception as error:
        raise UserError(f"{folder}: its config.yaml or provenance.json cannot be read; {advice}") from error
    if not same:
        raise UserError(f"{folder}: its config.yaml is that of another run; {advice}")
    if version not in (None, __version__):
        raise UserError(f"{folder}: written by sslpl {version}, this is {__version__}; {advice}")


def changed_weights(folder: Path, config: Config) -> str | None:
    """Returns a warning if an earlier run differs from this one only in the content of its weights file, else None."""
    file, fingerprint = config["backbone"].get("weights"), config["backbone"].get("weights_fingerprint")
    if fingerprint is None or folder.exists():
        return None
    for config_file in sorted(folder.parent.glob(f"seed{config['seed']}-*/config.yaml")):
        with suppress(Exception):  # a config that cannot be read is not that of such a run
            other: Config = OmegaConf.to_container(OmegaConf.load(config_file))  # type: ignore[assignment]
            backbone = other["backbone"] | {"weights_fingerprint": fingerprint}
            if other["backbone"]["weights"] == file and run_id(other | {"backbone": backbone}) == run_id(config):
                return f"backbone.weights={file}: has changed since {config_file.parent} began; this is another run"
    return None


def make_folder(folder: Path, output_dir: str) -> None:
    """Creates a run's folder; UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runtime.output_dir={output_dir}: cannot be written ({error.strerror or error})") from error


def open_folder(run: RunInfo) -> None:
    """Writes a run's config and provenance, and removes the error log and partial files of an earlier process."""
    write_whole(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(run.config))))
    write_json(run.folder / "provenance.json", run.provenance)
    for leftover in (run.folder / "error.log", *run.folder.rglob(".*.partial-*")):
        leftover.unlink(missing_ok=True)


def resumed_provenance(folder: Path, now: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the provenance of a new or resumed run, and a line for each fact that has changed since its start.

    Its `run_token` is drawn once, for a new folder: it distinguishes the run from others with the same config.
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
    """Returns the id of a run in one folder: the id of its config, followed by the folder's `run_token` if any."""
    return "-".join(filter(None, (run_id(config), origin.get("run_token"))))
