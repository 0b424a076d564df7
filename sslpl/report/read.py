"""Run folders become runs, whatever state they are in."""

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
Row = dict[str, float]  # a row of metrics.csv without what it leaves empty
# What presets of `method` choose in `training`, beside METHOD_KEYS: all of it is about the loss prediction module.
MODULE_TRAINING = ("module_rate", "ranking_weight", "finetune_epochs", "finetune_rate", "finetune_last", "decay_early")
METHOD_TRAINING = (*METHOD_KEYS, *MODULE_TRAINING, "detach_after", "unlabeled_batch_limit")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with libyaml


class Queries(NamedTuple):
    """The ledger: an entry per labeled image."""

    cycle: Integers
    index: Integers  # type: ignore[assignment]
    label: Integers


class Run(NamedTuple):
    """A run as its folder tells it."""

    folder: Path
    dataset: str
    label: str
    seed: int
    setting: str  # 12 digits over all of the config but the seed
    values: dict[str, str]  # the same as text, by dotted path
    state: str  # finished, running, killed, interrupted, failed or waiting
    note: str  # why it failed, or where it stands
    rows: list[Row]
    queries: Queries
    origin: dict[str, str]  # of provenance.json: what should be alike in runs that are compared
    choices: dict[str, str]  # the option chosen in each group; empty for a run that has not begun

    @property
    def finished(self) -> bool:
        """Whether the run is complete, and so counts."""
        return self.state == FINISHED

    @property
    def protocol(self) -> dict[str, str]:
        """The values that methods share when they are compared: data, backbone, budget, schedule."""
        return {path: value for path, value in self.values.items() if not of_the_method(path)}

    @property
    def ceiling(self) -> bool:
        """Whether it begins with all labels."""
        return self.values.get("budget.initial") == "1.0" and self.values.get("budget.cycles") == "1"


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in and below some folders, ordered by path, and a line for each folder that cannot be read."""
    runs, damaged = [], []
    for folder in sorted({folder for top in folders for folder in run_folders(top)}):
        try:
            runs.append(read_run(folder))
        except Exception as error:  # anything may lie in a damaged file
            line = " ".join(str(error).split())[:160]
            damaged.append(f"{folder}: cannot be read and is left out ({type(error).__name__}: {line})")
    return runs, damaged


def run_folders(top: Path) -> Iterator[Path]:
    """The folders of runs in and below a folder: those with a status, or named like a run and with a config."""
    for path in (*top.glob("**/status.json"), *top.glob("**/seed*-*/config.yaml")):
        yield path.parent.resolve()


def read_run(folder: Path) -> Run:
    """One run from its folder; any exception for a damaged one."""
    config: Config = yaml.load((folder / "config.yaml").read_text(), LOADER)
    science = {key: value for key, value in scientific_config(config).items() if key != "seed"}
    status = read_json(folder / "status.json")
    state = "killed" if gone(status) else str(status.get("state", "waiting"))
    rows, provenance = read_rows(folder / "metrics.csv"), read_json(folder / "provenance.json")
    if state == FINISHED and len(rows) != status.get("cycle", len(rows) - 1) + 1:
        raise ValueError(f"finished with cycle {status.get('cycle')}, but metrics.csv has {len(rows)} rows")
    return Run(
        folder=folder,
        dataset=folder.parts[-3],
        label=provenance.get("label") or folder.parts[-2],  # a long label is shortened in the folder's name
        seed=int(config["seed"]),
        setting=setting_id(config),
        values=dict(flat(science)),
        state=state,
        note=note(status, len(rows), config["budget"]["cycles"]),
        rows=rows,
        queries=read_queries(folder / "queries.csv"),
        origin=read_origin(folder / "provenance.json"),
        choices=provenance.get("choices") or {},
    )


def gone(status: Mapping[str, Any]) -> bool:
    """Whether a run that says it is running belongs to a process of this machine that is no more."""
    if status.get("state") != "running" or status.get("host") != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(status["process"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.csv; none if there is none yet. ValueError if a cycle has no accuracy."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value and key in COLUMNS}
            for row in csv.DictReader(file)
        ]
    if any("labeled" not in row or "test_accuracy" not in row for row in rows):
        raise ValueError("a row of its metrics.csv has no number of labels or no test accuracy")
    return rows


def read_queries(path: Path) -> Queries:
    """The first three columns of a queries.csv, empty if there is none yet."""
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    text = StringIO("\n".join(lines))
    table = (
        np.loadtxt(text, dtype=np.int64, delimiter=",", usecols=(0, 1, 2), ndmin=2) if lines else np.empty((0, 3), int)
    )
    return Queries(*table.astype(np.int64).T)


def read_origin(path: Path) -> dict[str, str]:
    """What provenance.json says that should be alike in runs that are compared; empty if there is none."""
    content = read_json(path)
    git, versions = content.get("git") or {}, content.get("versions") or {}
    facts = {
        "commit": (git.get("commit") or "")[:8],
        "uncommitted changes": {"True": "yes", "False": "no"}.get(str(git.get("dirty"))),
        "sslpl": versions.get("sslpl"),
        "torch": versions.get("torch"),
        "device": content.get("device_name"),
        "precision": content.get("precision"),
    }
    return {key: str(value or "unknown") for key, value in facts.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file, empty if there is no file; ValueError for anything else."""
    content = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return content


def note(status: Mapping[str, Any], cycles: int, planned: int) -> str:
    """Why a run failed, or how far it is; empty if it is finished."""
    if status.get("state") == FINISHED:
        return ""
    where = f"{cycles} of {planned} cycles"
    if status.get("images"):
        return f"{where}: waits for the labels of {status['images']} images"
    return f"{where}: {status['error']}" if status.get("error") else where


def flat(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """The leaves of nested mappings as text, by dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def of_the_method(path: str) -> bool:
    """Whether a value is part of what a method is made of, and not of what methods share."""
    group, _, key = path.partition(".")
    return group in ("method", *METHOD_GROUPS) or (group == "training" and key in METHOD_TRAINING)
