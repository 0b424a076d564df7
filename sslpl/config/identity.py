"""Which run a config is: its label, its id and its folder."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Choices = dict[str, str]  # the option chosen in each group
METHOD_GROUPS = (
    "query",
    "ssl",
    "task_ssl",
    "module",
    "ranking",
)  # with trimming and warm start, what a method is made of
METHOD_KEYS = ("trim", "warm_start")
LONGEST_NAME = 255  # bytes that file systems allow; a label is ASCII
LOCATION_KEYS = ("root", "csv", "download")  # of a dataset: where its files lie


def scientific_config(config: Config) -> Config:
    """The part of a resolved config that can change a result: without runtime, tracker, where files lie, strictness.

    Of a file of weights the content counts (`weights_fingerprint`), not where it lies.
    """
    science = {key: value for key, value in config.items() if key not in ("runtime", "tracker", "hydra")}
    science["dataset"] = {key: value for key, value in science["dataset"].items() if key not in LOCATION_KEYS}
    if "backbone" in science:
        ignored = "weights_fingerprint" if science["backbone"].get("weights_fingerprint") is None else "weights"
        science["backbone"] = {key: value for key, value in science["backbone"].items() if key != ignored}
    # How strictly a file of labels is read does not change what it says.
    oracle = science.get("oracle", {})
    science["oracle"] = {key: value for key, value in oracle.items() if key not in ("partial", "new_classes")}
    return science


def run_id(config: Config) -> str:
    """12 hexadecimal digits of a hash over the scientific config."""
    return config_digest(scientific_config(config))


def setting_id(config: Config) -> str:
    """The same without the seed: what runs share that may be averaged."""
    return config_digest({key: value for key, value in scientific_config(config).items() if key != "seed"})


def config_digest(values: Config) -> str:
    """12 hexadecimal digits of a hash over nested values: 10,000 runs share one in 1 of 5 million projects."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:12]


def canonical(values: Config) -> str:
    """Nested values as text that does not depend on the order of their keys."""
    return json.dumps(values, sort_keys=True, allow_nan=False)


def method_name(config: Config, choices: Choices, composed: Callable[[list[str]], tuple[Config, Choices]]) -> str:
    """The method and what differs from its preset, as in `sslpm+query=entropy+query.subset=100`.

    `composed` returns the config, and the options chosen, that a list of overrides gives.
    """
    changed: list[str] = []
    for depth in (0, 1):  # a group's option chooses options of the groups below it
        _, usual = composed([f"method={config['method']}", *changed])
        changed += [
            f"{group}={option}"
            for group, option in choices.items()
            if group.partition("/")[0] in METHOD_GROUPS and group.count("/") == depth and usual.get(group) != option
        ]
    usual_config, _ = composed([f"method={config['method']}", *changed])
    changed = [choice.replace("/", ".", 1) for choice in changed]
    for group in METHOD_GROUPS:
        changed += changed_values(group, config.get(group), usual_config.get(group))
    for key in METHOD_KEYS:
        changed += changed_values(key, config["training"].get(key), usual_config["training"].get(key))
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "-", "+".join([config["method"], *changed]))


def changed_values(path: str, ours: Any, usual: Any) -> list[str]:
    """The values below a dotted path that are not the usual ones, as `path.key=value`."""
    if isinstance(ours, dict) and isinstance(usual, dict):
        keys = [*ours, *(key for key in usual if key not in ours)]
        return [line for key in keys for line in changed_values(f"{path}.{key}", ours.get(key), usual.get(key))]
    same = ours == usual and type(ours) is type(usual)
    return [] if same else [f"{path}={str(ours).lower() if isinstance(ours, bool) else ours}"]


def run_folder(config: Config, dataset: str, method_name: str) -> Path:
    """Where a run leaves its files."""
    output = Path(config["runtime"]["output_dir"])
    return output / dataset / folder_name(method_name) / f"seed{config['seed']}-{run_id(config)}"


def folder_name(method_name: str) -> str:
    """A method name as a folder name that file systems allow: a long one ends with a hash of the whole instead."""
    if len(method_name) <= LONGEST_NAME:
        return method_name
    mark = hashlib.sha256(method_name.encode()).hexdigest()[:16]
    return f"{method_name[: LONGEST_NAME - len(mark) - 1]}-{mark}"
