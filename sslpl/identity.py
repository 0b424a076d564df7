"""Which run a config is: its label, its id and its folder."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Config = dict[str, Any]
METHOD_GROUPS = (
    "query",
    "ssl",
    "module",
    "ranking",
)  # with trimming and warm start, what a method is made of
METHOD_KEYS = ("trim", "warm_start")


def scientific(config: Config) -> Config:
    """The part of a resolved config that can change a result: without runtime, tracker and where files lie."""
    science = {key: value for key, value in config.items() if key not in ("runtime", "tracker", "hydra")}
    science["dataset"] = {key: value for key, value in science["dataset"].items() if key not in ("root", "download")}
    return science


def run_id(config: Config) -> str:
    """8 hexadecimal digits of a hash over the scientific config."""
    text = json.dumps(scientific(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def label(config: Config, choices: Mapping[str, str], preset: Config, preset_choices: Mapping[str, str]) -> str:
    """The method and what differs from its preset, as in `sslpm+query=entropy`."""
    differences: list[str] = []
    for group in METHOD_GROUPS:
        changed = [
            f"{key}={choices[key]}"
            for key in sorted(choices)
            if (key == group or key.startswith(f"{group}/")) and choices[key] != preset_choices.get(key)
        ]
        whole_group = f"{group}={choices.get(group)}" in changed
        differences += changed
        if not whole_group:
            covered = tuple(key.partition("=")[0].replace("/", ".") for key in changed)
            differences += _leaf_differences(group, config.get(group), preset.get(group), covered)
    for key in METHOD_KEYS:
        if config["training"].get(key) != preset["training"].get(key):
            differences.append(f"{key}={str(config['training'].get(key)).lower()}")
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "-", "+".join([config["method"], *differences]))


def _leaf_differences(path: str, ours: Any, theirs: Any, covered: tuple[str, ...]) -> list[str]:
    if path in covered:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        parts = (_leaf_differences(f"{path}.{key}", ours.get(key), theirs.get(key), covered) for key in keys)
        return [difference for part in parts for difference in part]
    return [] if ours == theirs and type(ours) is type(theirs) else [f"{path}={ours}"]


def folder(config: Config, dataset: str, label: str) -> Path:
    """Where a run leaves its files."""
    return Path(config["runtime"]["output_dir"]) / dataset / label / f"seed{config['seed']}-{run_id(config)}"
