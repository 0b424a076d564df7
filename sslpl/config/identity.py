"""Identifies the run of a config: its method name, id and folder."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Choices = dict[str, str]  # the option chosen in each group
# A method consists of the options of these groups and of these keys of `training`.
METHOD_GROUPS = ("query", "ssl", "task_ssl", "module", "ranking")
METHOD_KEYS = ("trim", "warm_start")
LONGEST_NAME = 255  # bytes that file systems allow; a method name is ASCII
# Keys that are younger than the ids of runs, and the value that stands for the only behavior before them. A key with
# that value is left out of the id. The images of every frozen backbone were augmented.
ADDED_KEYS: dict[tuple[str, str], Callable[[Config], Any]] = {
    ("training", "augment"): lambda config: bool(config.get("backbone", {}).get("freeze", False)),
    ("training", "min_steps"): lambda _: 0,
    ("training", "nesterov"): lambda _: False,
    ("training", "muon_rate"): lambda _: None,
    ("training", "decay_per_image"): lambda _: None,
    ("training", "label_smoothing"): lambda _: 0.0,
    ("training", "rate_schedule"): lambda _: "stepped",
    ("training", "peak_at"): lambda _: 0.2,
    ("training", "alternating_flips"): lambda _: False,
    ("training", "test_time_augmentation"): lambda _: "none",
    ("training", "precise_batch_norm"): lambda _: False,
    ("training", "finetune_clip"): lambda _: None,
    ("dataset", "open_set"): lambda _: 0.0,
    ("budget", "seconds"): lambda _: None,
    ("budget", "seconds_per_label"): lambda _: None,
    ("budget", "stop"): lambda _: "never",
    ("budget", "stop_kappa"): lambda _: 0.99,
    ("budget", "stop_gain"): lambda _: 0.001,
    ("oracle", "annotators"): lambda _: 1,
    ("oracle", "max_answers"): lambda _: None,
    ("oracle", "aggregate"): lambda _: "majority",
}
# Keys of an oracle that decide how people label and what is accepted, not the labels.
LABELING_KEYS = ("partial", "new_classes", "guesses", "port", "host", "share", "url", "project", "images")
LOCATION_KEYS = ("root", "csv", "file", "download")  # keys of a dataset that say where its files are


def scientific_config(config: Config) -> Config:
    """Returns the part of a resolved config that can change a result: without runtime, tracker and file locations.

    A file of weights is identified by its content (`weights_fingerprint`), not by its path.
    """
    science = {key: value for key, value in config.items() if key not in ("runtime", "tracker", "hydra")}
    science["dataset"] = {key: value for key, value in science["dataset"].items() if key not in LOCATION_KEYS}
    if "backbone" in science:
        ignored = "weights_fingerprint" if science["backbone"].get("weights_fingerprint") is None else "weights"
        science["backbone"] = {key: value for key, value in science["backbone"].items() if key != ignored}
    if "budget" in science:  # a forecast changes nothing
        science["budget"] = {key: value for key, value in science["budget"].items() if key != "target"}
    oracle = science.get("oracle", {})
    science["oracle"] = {key: value for key, value in oracle.items() if key not in LABELING_KEYS}
    return without_added_keys(science)


def without_added_keys(config: Config) -> Config:
    """Returns a config without the keys of ADDED_KEYS that have the value of the time before them."""
    kept = dict(config)
    for (group, key), earlier in ADDED_KEYS.items():
        if key in kept.get(group, {}) and kept[group][key] == earlier(config):
            kept[group] = {name: value for name, value in kept[group].items() if name != key}
    return kept


def run_id(config: Config) -> str:
    """Returns 12 hexadecimal digits of a hash over the scientific config."""
    return config_digest(scientific_config(config))


def setting_id(config: Config) -> str:
    """Returns the id without the seed, which runs share that may be averaged."""
    return config_digest({key: value for key, value in scientific_config(config).items() if key != "seed"})


def config_digest(values: Config) -> str:
    """Hashes nested values to 12 hexadecimal digits: 10,000 runs collide with a probability of 1 in 5 million."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:12]


def canonical(values: Config) -> str:
    """Serializes nested values to JSON that is independent of the order of their keys."""
    return json.dumps(values, sort_keys=True, allow_nan=False)


def method_name(config: Config, choices: Choices, compose: Callable[[list[str]], tuple[Config, Choices]]) -> str:
    """Returns the method and its differences from the preset, as in `sslpm+query=entropy+query.subset=100`.

    `compose` returns the config of a list of overrides and the options chosen in it.
    """
    preset_options = [f"method={config['method']}"]
    if "training" in choices:  # its option may set a METHOD_KEY for every method
        preset_options.append(f"training={choices['training']}")
    changed: list[str] = []
    for depth in (0, 1):  # an option may choose the options of nested groups
        _, preset_choices = compose([*preset_options, *changed])
        changed += [
            f"{group}={option}"
            for group, option in choices.items()
            if group.partition("/")[0] in METHOD_GROUPS
            and group.count("/") == depth
            and preset_choices.get(group) != option
        ]
    preset, _ = compose([*preset_options, *changed])
    changed = [choice.replace("/", ".", 1) for choice in changed]
    for group in METHOD_GROUPS:
        changed += changed_values(group, config.get(group), preset.get(group))
    for key in METHOD_KEYS:
        changed += changed_values(key, config["training"].get(key), preset["training"].get(key))
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "-", "+".join([config["method"], *changed]))


def changed_values(path: str, value: Any, default: Any) -> list[str]:
    """Lists the values below a dotted path that differ from their defaults, as `path.key=value`."""
    if isinstance(value, dict) and isinstance(default, dict):
        keys = [*value, *(key for key in default if key not in value)]
        return [line for key in keys for line in changed_values(f"{path}.{key}", value.get(key), default.get(key))]
    same = value == default and type(value) is type(default)
    return [] if same else [f"{path}={str(value).lower() if isinstance(value, bool) else value}"]


def dataset_name(config: Config, choices: Choices) -> str:
    """Returns the name of a run's dataset: its option or, for embeddings, the name of their file."""
    file = config["dataset"].get("file")
    return choices["dataset"] if file is None else re.sub(r"[^A-Za-z0-9_.,=+-]", "-", Path(file).stem)


def run_folder(config: Config, dataset: str, method_name: str) -> Path:
    """Returns the folder in which a run writes its files."""
    output = Path(config["runtime"]["output_dir"])
    return output / dataset / folder_name(method_name) / f"seed{config['seed']}-{run_id(config)}"


def folder_name(method_name: str) -> str:
    """Shortens a method name that is too long for a folder: its end is replaced by a hash of the whole name."""
    if len(method_name) <= LONGEST_NAME:
        return method_name
    digest = hashlib.sha256(method_name.encode()).hexdigest()[:16]
    return f"{method_name[: LONGEST_NAME - len(digest) - 1]}-{digest}"
