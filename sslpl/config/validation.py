"""Checks a config against the signatures of its targets, before anything is built."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import get_object

from sslpl.arguments import checked_value, nearest_name, type_hints
from sslpl.config.frozen import embeds_once, has_images
from sslpl.config.identity import Config
from sslpl.data.variants import PoolVariant
from sslpl.models.starting_weights import Start
from sslpl.training import Training
from sslpl.types import CountOrZero, UserError

# The fields of these classes are further keys of every option of the group.
COMMON_KEYS: dict[str, type] = {"dataset": PoolVariant, "backbone": Start}
RENAMED = {"training.init": "backbone.weights=FILE"}  # keys of earlier versions
GROUPS = (
    *("dataset", "backbone", "module", "ranking", "ssl", "task_ssl", "query", "budget", "oracle", "training"),
    *("tracker", "runtime", "method"),
)  # groups of which each needs an option
# Oracles that ask people: the option of each target.
PEOPLE = {
    "sslpl.oracle.FileOracle": "file",
    "sslpl.oracle.BrowserOracle": "browser",
    "sslpl.oracle.LabelStudioOracle": "label_studio",
}
CROWD = "sslpl.oracle.CrowdOracle"
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def validated_config(config: Config) -> Config:
    """Returns a copy with values of their annotated types (1 becomes 1.0 for a float).

    Raises a UserError that names the key, the value and what is allowed, for the first mistake found.
    """
    check_groups(config, GROUPS)
    clean = typed_config(config)
    clean["training"].setdefault("augment", False)  # recorded even if a training option of the user's lacks it
    check_protocol(clean)
    if "optimizer" in clean["training"]:
        check_head_training(clean)
    if clean["training"].get("nesterov") and clean["training"]["momentum"] == 0:
        raise UserError("training.nesterov=true: must be false with training.momentum=0")
    if clean["training"]["augment"] and not (clean["backbone"].get("freeze") and has_images(clean)):
        raise UserError("training.augment=true: must be false unless backbone.freeze=true, on images")
    if not has_images(clean):
        check_embeddings(clean)
    if embeds_once(clean):
        check_without_images(clean, "backbone.freeze=true", "set training.augment=true")
    if (clean["module"] or {}).get("_target_") == "sslpl.models.no_module":
        check_without_module(clean)
    return clean


def check_groups(config: Config, groups: Sequence[str]) -> None:
    """Checks that a config has all of some groups, a seed, and no other top-level key."""
    known = [*groups, "seed"]
    for key, value in config.items():
        if key not in known:
            nodes = {group: config.get(group) for group in groups}
            nested = [f"{group}.{key}" for group, node in nodes.items() if isinstance(node, dict) and key in node]
            shown = key if isinstance(value, dict) else f"{key}={value}"
            raise UserError(
                f"{shown}: no such key; {f'did you mean {nested[0]}?' if nested else nearest_name(key, known)}"
            )
    if "seed" not in config:
        raise UserError("seed: must not be removed")
    for group in groups:
        chosen = config.get(group)
        if not (isinstance(chosen, str) if group == "method" else isinstance(chosen, dict) and "_target_" in chosen):
            raise UserError(removed_group(group))


def removed_group(group: str) -> str:
    """Returns the error line for a required group that the command line has removed."""
    return f"{group}: must be one of its options ({group}=...), and not removed"


def typed_config(config: Config) -> Config:
    """Returns a copy with values of their annotated types, without checks that compare several values."""
    clean = copy.deepcopy(config)
    clean["seed"] = checked_value("seed", clean.get("seed"), CountOrZero)
    for group, node in clean.items():
        for path, child in target_nodes(group, node):
            check_node(path, child)
    return clean


def target_nodes(path: str, node: Any) -> Iterator[tuple[str, Config]]:
    """Yields every node of a config with a `_target_`, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from target_nodes(f"{path}.{key}", child)


def check_node(path: str, node: Config) -> None:
    """Checks the keys of a node against the signature of its `_target_`; converts its values in place."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{path}._target_={node['_target_']}: cannot be imported ({error})") from error
    sources = [target, COMMON_KEYS[path]] if path in COMMON_KEYS else [target]
    parameters = {name: p for source in sources for name, p in inspect.signature(source).parameters.items()}
    hints = {name: hint for source in sources for name, hint in type_hints(source).items()}
    takes_any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in parameters and not takes_any_key:
            raise UserError(f"{path}.{key}={value}: no such key; {advice(f'{path}.{key}', [*parameters])}")
        if key in hints and not (isinstance(value, dict) and "_target_" in value):
            node[key] = checked_value(f"{path}.{key}", value, hints[key])


def advice(path: str, known: list[str]) -> str:
    """Suggests what to write instead of an unknown key."""
    return f"it is now {RENAMED[path]}" if path in RENAMED else nearest_name(path.rpartition(".")[2], known)


def check_protocol(config: Config) -> None:
    """Checks keys of the protocol that require, or would ignore, one another."""
    dataset, budget = config["dataset"], config["budget"]
    ratios = (
        ("dataset", dataset, "imbalance", "imbalance_ratio", ("long_tailed", "stepped")),
        ("budget", budget, "initial_pool", "initial_ratio", ("imbalanced",)),
    )
    for group, node, kind, ratio, imbalanced in ratios:
        chosen, value = node.get(kind), node.get(ratio)
        if chosen in imbalanced and value is None:
            raise UserError(f"{group}.{ratio}=null: must be a number of at least 1 with {group}.{kind}={chosen}")
        if chosen not in imbalanced and value is not None:
            raise UserError(f"{group}.{ratio}={value}: must be null unless {group}.{kind} is {' or '.join(imbalanced)}")
    oracle = str((config.get("oracle") or {}).get("_target_"))
    if oracle in PEOPLE:
        check_people(config, PEOPLE[oracle])
    if config["training"].get("checkpoint") == "best" and budget.get("validation", 0.0) == 0:
        raise UserError("training.checkpoint=best: must be last unless budget.validation is above 0")
    if oracle == CROWD:
        check_crowd(config)
    if dataset.get("open_set"):
        check_open_set(config)
    check_initial_query(config)
    is_measured = PEOPLE.get(oracle) in ("browser", "label_studio")
    if budget.get("seconds") is not None and not is_measured and not budget.get("seconds_per_label"):
        raise UserError(
            f"budget.seconds={budget['seconds']}: needs budget.seconds_per_label above 0, because only oracle=browser "
            "and label_studio measure the time of a label"
        )


def check_open_set(config: Config) -> None:
    """Checks that nothing requires a class of every image, which those of an open set do not have."""
    setting = f"dataset.open_set={config['dataset']['open_set']}"
    check_hidden_labels(config, setting, "because it needs a class of every image")


def check_crowd(config: Config) -> None:
    """Checks that nothing reads the hidden labels past the simulated people, and that errors have one source."""
    check_hidden_labels(config, "oracle=crowd", "because only the answers of the people are known")
    if noise := config["dataset"].get("label_noise"):
        raise UserError(
            f"dataset.label_noise={noise}: must be 0.0 with oracle=crowd, whose errors oracle.accuracy and "
            "oracle.confusion set"
        )


def check_hidden_labels(config: Config, setting: str, reason: str) -> None:
    """Checks that neither the initial pool nor the strategy reads the labels that are hidden with a setting."""
    if (kind := config["budget"].get("initial_pool")) in ("balanced", "imbalanced"):
        raise UserError(f"budget.initial_pool={kind}: must be random or query with {setting}, {reason}")
    for path, node in target_nodes("query", config["query"]):
        if node.get("oracle_baseline"):
            raise UserError(f"{path}.oracle_baseline=true: must be false with {setting}, {reason}")


def check_initial_query(config: Config) -> None:
    """Checks that a strategy which selects the initial images works without labels and on pretrained embeddings."""
    if config["budget"].get("initial_pool") != "query":
        return
    name = str(config["query"].get("_target_"))
    if not getattr(get_object(name), "works_unlabeled", False):
        raise UserError(
            "budget.initial_pool=query: query must be a strategy that needs no labels, such as typiclust, probcover or "
            f"random; {name.rpartition('.')[2]} is not marked works_unlabeled"
        )
    if config["backbone"].get("weights") is None:
        raise UserError(
            "budget.initial_pool=query: backbone.weights must be imagenet or a file of weights "
            "(python -m sslpl.pretrain), because embeddings of random weights are not informative"
        )


def check_people(config: Config, oracle: str) -> None:
    """Checks that nothing requires all labels, which are unknown if people are the oracle."""
    dataset, reason = config["dataset"], "because it needs all labels"
    for key, value in (("imbalance", "none"), ("label_noise", 0.0), ("open_set", 0.0)):
        if dataset.get(key, value) != value:
            raise UserError(f"dataset.{key}={dataset[key]}: must be {value} with oracle={oracle}, {reason}")
    check_hidden_labels(config, f"oracle={oracle}", reason)


def check_head_training(config: Config) -> None:
    """Checks that training=head trains a small head, and that the members of a committee can differ."""
    if not (embeds_once(config) or accepts_embeddings(config)):
        raise UserError(
            "training=head: backbone must be linear or mlp, or frozen (backbone.freeze=true, training.augment=false), "
            "because it takes all labeled examples at once"
        )
    for key, default in without_effect_on_heads().items():
        value = config["training"].get(key, default)
        if value != default:
            raise UserError(f"training.{key}={value}: must be {default} with training=head, which ignores it")
    for path, node in target_nodes("query", config["query"]):
        if "snapshots" in node and config["training"]["optimizer"] == "lbfgs":
            raise UserError(f"training.optimizer=lbfgs: must be adamw, because {path} needs snapshots of the training")
        if "members" in node and config["training"]["optimizer"] == "lbfgs" and trains_linear_head(config):
            reason = f"because all networks of {path} would converge to the same linear head"
            raise UserError(f"training.optimizer=lbfgs: must be adamw, {reason}")


def trains_linear_head(config: Config) -> bool:
    """True if nothing but a linear layer is trained."""
    return bool(config["backbone"].get("freeze")) or config["backbone"]["_target_"] == "sslpl.models.linear"


def without_effect_on_heads() -> Config:
    """Returns the options of the joint training that a small head has no use for, with their defaults."""
    keys = ("min_steps", "nesterov", "muon_rate", "decay_per_image", "label_smoothing", "rate_schedule")
    defaults = Training()
    return {key: getattr(defaults, key) for key in keys}


def check_embeddings(config: Config) -> None:
    """Checks that nothing needs images, or augmented views of them, of a dataset of embeddings."""
    if not accepts_embeddings(config):
        raise UserError("dataset=embeddings: backbone must be linear or mlp, because the others need images")
    check_without_images(config, "dataset=embeddings")


def accepts_embeddings(config: Config) -> bool:
    """True if the backbone takes embeddings instead of images."""
    return bool(getattr(get_object(config["backbone"]["_target_"]), "accepts_embeddings", False))


def check_without_images(config: Config, setting: str, remedy: str = "") -> None:
    """Checks that nothing needs images of a run with a setting in which there are embeddings alone."""
    instead = f"{remedy}, or " if remedy else ""
    for group, none, works in (("ssl", "no_ssl", "method=scal"), ("task_ssl", "no_task_ssl", "task_ssl=none")):
        if config[group]["_target_"] != f"sslpl.ssl.{none}":
            reason = "because its unlabeled term needs augmented views of images"
            raise UserError(f"{setting}: {group} must be none, {reason}; {instead}{works} works")
    for path, node in target_nodes("query", config["query"]):
        if getattr(get_object(node["_target_"]), "needs_images", False):
            name = node["_target_"].rpartition(".")[2]
            raise UserError(
                f"{setting}: {path} must not be {name}, which needs images; {instead}for example badge, typiclust and "
                "margin work on embeddings"
            )


def check_without_module(config: Config) -> None:
    """Checks that nothing trains or uses the loss prediction module of a run without one."""
    if config["ssl"].get("_target_") != "sslpl.ssl.no_ssl":
        raise UserError("module=none: ssl must be none, because there is no module to train on unlabeled images")
    for path, node in target_nodes("query", config["query"]):
        if getattr(get_object(node["_target_"]), "needs_module", False):
            raise UserError(f"module=none: {path} needs predicted losses; choose module=convolutional or module=pooled")
