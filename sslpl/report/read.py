"""Reads run folders, whatever state the runs are in."""

import csv
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from sslpl.config.identity import METHOD_GROUPS, METHOD_KEYS, Config, scientific_config, setting_id
from sslpl.recording.run_tables import COLUMNS
from sslpl.report.statistics import Integers

FINISHED = "finished"
MetricsRow = dict[str, float]  # a row of metrics.csv without its empty cells
# What presets of `method` set in `training` besides METHOD_KEYS: settings of the loss prediction module.
MODULE_TRAINING = ("module_rate", "ranking_weight", "finetune_epochs", "finetune_rate", "finetune_last", "decay_early")
METHOD_TRAINING = (*METHOD_KEYS, *MODULE_TRAINING, "detach_after", "unlabeled_batch_limit")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast if PyYAML was built with libyaml


class Queries(NamedTuple):
    """The labeled images in the order of their labels, as queries.csv has them."""

    cycle: Integers  # the first that trains on the image
    index: Integers  # type: ignore[assignment]
    label: Integers  # class


class Run(NamedTuple):
    """A run as read from its folder."""

    folder: Path
    dataset: str
    method_name: str
    seed: int
    setting: str  # hash of the scientific config without the seed
    values: dict[str, str]  # the scientific config without the seed, as text by dotted path
    state: str  # finished, running, killed, interrupted, failed or waiting
    note: str  # why it failed, or how far it is
    rows: list[MetricsRow]
    queries: Queries
    provenance: dict[str, str]  # what should be equal in runs that are compared
    choices: dict[str, str]  # the option chosen in each group; empty for a run that has not started

    @property
    def finished(self) -> bool:
        """True if the run is finished; only finished runs are compared."""
        return self.state == FINISHED

    @property
    def protocol(self) -> dict[str, str]:
        """Returns the values that methods share in a fair comparison: data, backbone, budget, schedule."""
        return {path: value for path, value in self.values.items() if not belongs_to_method(path)}

    @property
    def ceiling(self) -> bool:
        """True if the run trains on all labels from the start."""
        return self.values.get("budget.initial") == "1.0" and self.values.get("budget.cycles") == "1"

    @property
    def oracle_baseline(self) -> bool:
        """True if the run's strategy sees hidden labels, as `oracle_baseline: true` declares."""
        return any(path.endswith(".oracle_baseline") and value == "true" for path, value in self.values.items())


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs in and below some folders, by path, and describes each folder that cannot be read in a line."""
    runs, unreadable = [], []
    for folder in sorted({folder for top in folders for folder in run_folders(top)}):
        try:
            runs.append(read_run(folder))
        except Exception as error:  # a damaged file may raise anything
            line = " ".join(str(error).split())[:160]
            unreadable.append(f"{folder}: cannot be read and is left out ({type(error).__name__}: {line})")
    return runs, unreadable


def run_folders(top: Path) -> Iterator[Path]:
    """Finds the run folders in and below a folder: those with a status, or named like a run and with a config."""
    for path in (*top.glob("**/status.json"), *top.glob("**/seed*-*/config.yaml")):
        yield path.parent.resolve()


def read_run(folder: Path) -> Run:
    """Reads a run from its folder, of this version or the one before; a damaged folder may raise any exception."""
    config: Config = yaml.load((folder / "config.yaml").read_text(), LOADER)
    config.get("training", {}).pop("init", None)  # older runs: a path, whose content is in `init_content`
    science = {key: value for key, value in scientific_config(config).items() if key != "seed"}
    status = read_json(folder / "status.json")
    state = "killed" if is_killed(status) else str(status.get("state", "waiting"))
    rows, provenance = read_rows(folder / "metrics.csv"), read_json(folder / "provenance.json")
    if state == FINISHED and len(rows) != status.get("cycle", len(rows) - 1) + 1:
        raise ValueError(f"finished with cycle {status.get('cycle')}, but metrics.csv has {len(rows)} rows")
    return Run(
        folder=folder,
        dataset=folder.parts[-3],
        method_name=provenance.get("label") or folder.parts[-2],  # a long label is shortened in the folder's name
        seed=int(config["seed"]),
        setting=setting_id(config),
        values=dict(flatten(science)),
        state=state,
        note=progress_note(status, len(rows), config["budget"]["cycles"]),
        rows=rows,
        queries=read_queries(folder / "queries.csv"),
        provenance=read_provenance(folder / "provenance.json"),
        choices=provenance.get("choices") or {},
    )


def is_killed(status: Mapping[str, Any]) -> bool:
    """True if the status says running, but the process on this machine no longer exists."""
    if status.get("state") != "running" or status.get("host") != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(status["process"]), 0)
    except OSError as error:  # any other error: a process of another user
        return isinstance(error, ProcessLookupError)
    return False


def read_rows(path: Path) -> list[MetricsRow]:
    """Reads the rows of a metrics.csv, none if there is no file; ValueError if a row has no accuracy."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [{key: float(value) for key, value in row.items() if value and key in COLUMNS} for row in reader]
    if any("labeled" not in row or "test_accuracy" not in row for row in rows):
        raise ValueError("a row of its metrics.csv has no number of labels or no test accuracy")
    return rows


def read_queries(path: Path) -> Queries:
    """Reads the first three columns of a queries.csv, empty if there is no file."""
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    if not lines:
        return Queries(*np.empty((3, 0), np.int64))
    return Queries(*np.loadtxt(StringIO("\n".join(lines)), np.int64, delimiter=",", usecols=(0, 1, 2), ndmin=2).T)


def read_provenance(path: Path) -> dict[str, str]:
    """Reads from provenance.json what should be equal in runs that are compared; values are "unknown" without it."""
    content = read_json(path)
    git, versions = content.get("git") or {}, content.get("versions") or {}
    facts = {
        "commit": (git.get("commit") or "")[:8],
        "uncommitted changes": {"True": "yes", "False": "no"}.get(str(git.get("dirty"))),
        "sslpl": versions.get("sslpl"),
        "torch": versions.get("torch"),
        "device": content.get("device_name"),
        "precision": content.get("precision"),
        "number of interleaved runs": content.get("interleaved", 1),
    }
    return {key: str(value or "unknown") for key, value in facts.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a mapping from a JSON file, empty if there is no file; ValueError if it holds anything else."""
    content = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return content


def progress_note(status: Mapping[str, Any], cycles: int, planned: int) -> str:
    """Says why a run failed or how far it is; empty if it is finished."""
    if status.get("state") == FINISHED:
        return ""
    where = f"{cycles} of {planned} cycles"
    if status.get("images"):
        return f"{where}: waits for the labels of {status['images']} images"
    return f"{where}: {status['error']}" if status.get("error") else where


def flatten(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Yields the leaves of nested mappings as text with their dotted paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def belongs_to_method(path: str) -> bool:
    """True if a value is part of the method rather than of the protocol that methods share."""
    group, _, key = path.partition(".")
    return group in ("method", *METHOD_GROUPS) or (group == "training" and key in METHOD_TRAINING)
