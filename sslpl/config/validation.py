"""Checks a config against the signatures that it will be passed to, before anything is built."""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sslpl.config.identity import Config
from sslpl.data.variants import PoolVariant
from sslpl.models.starting_weights import Start
from sslpl.types import CountOrZero, UserError

SHARED_KEYS: dict[str, type] = {
    "dataset": PoolVariant,
    "backbone": Start,
}  # whose keys stand among those of another object
MOVED = {"training.init": "backbone.weights=FILE"}  # keys of earlier versions, and what they are now
GROUPS = (
    *("dataset", "backbone", "module", "ranking", "ssl", "task_ssl", "query", "budget", "oracle", "training"),
    *("tracker", "runtime", "method"),
)  # each needs an option
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def validated_config(config: Config) -> Config:
    """A copy whose values have the types that they are declared with (1 becomes 1.0 where a float is asked for).

    Raises a UserError that names the key, the value and what is allowed, for the first mistake found.
    """
    check_groups(config, GROUPS)
    clean = typed_config(config)
    check_protocol(clean)
    if (clean["module"] or {}).get("_target_") == "sslpl.models.no_module":
        check_without_module(clean)
    return clean


def check_groups(config: Config, groups: Sequence[str]) -> None:
    """Checks that a config has all of some groups and, beside the seed, no other top-level key."""
    known = [*groups, "seed"]
    for key, value in config.items():
        if key not in known:
            nodes = {group: config.get(group) for group in groups}
            inner = [f"{group}.{key}" for group, node in nodes.items() if isinstance(node, dict) and key in node]
            shown = key if isinstance(value, dict) else f"{key}={value}"
            raise UserError(
                f"{shown}: no such key; {f'did you mean {inner[0]}?' if inner else nearest_name(key, known)}"
            )
    if "seed" not in config:
        raise UserError("seed: must not be removed")
    for group in groups:
        chosen = config.get(group)
        if not (isinstance(chosen, str) if group == "method" else isinstance(chosen, dict) and "_target_" in chosen):
            raise UserError(without_option(group))


def without_option(group: str) -> str:
    """Says that a required group has no option, which the command line has removed."""
    return f"{group}: must be one of its options ({group}=...), and not removed"


def typed_config(config: Config) -> Config:
    """The same, value by value: without what one value demands of another."""
    clean = copy.deepcopy(config)
    clean["seed"] = checked_value("seed", clean.get("seed"), CountOrZero)
    for group, node in clean.items():
        for path, child in target_nodes(group, node):
            check_node(path, child)
    return clean


def target_nodes(path: str, node: Any) -> Iterator[tuple[str, Config]]:
    """Every part of a config that names a `_target_`, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from target_nodes(f"{path}.{key}", child)


def check_node(path: str, node: Config) -> None:
    """Checks the keys of one object against the signature of its `_target_`, and gives its values their types."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{path}._target_={node['_target_']}: cannot be imported ({error})") from error
    sources = [target, SHARED_KEYS[path]] if path in SHARED_KEYS else [target]
    parameters = {name: p for source in sources for name, p in inspect.signature(source).parameters.items()}
    hints = {name: hint for source in sources for name, hint in type_hints(source).items()}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in HYDRA_KEYS:
            continue
        if key not in parameters and not open_ended:
            raise UserError(f"{path}.{key}={value}: no such key; {advice(f'{path}.{key}', [*parameters])}")
        if key in hints and not (isinstance(value, dict) and "_target_" in value):
            node[key] = checked_value(f"{path}.{key}", value, hints[key])


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, or of a class's constructor, with their ranges."""
    source = target.__init__ if inspect.isclass(target) else target
    return get_type_hints(source, include_extras=True)


def checked_value(path: str, value: Any, annotation: Any) -> Any:
    """One value as its annotated type; UserError where it is of another or out of range."""
    try:
        adapter = TypeAdapter(annotation, config={"strict": True, "arbitrary_types_allowed": True})
        return adapter.validate_python(value)
    except ValidationError as error:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{path}={shown}: {allowed_values(annotation, error)}") from None


def allowed_values(annotation: Any, error: ValidationError) -> str:
    """What an annotation allows: its description if it has one, otherwise the first complaint."""
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, FieldInfo) and extra.description:
                return f"must be {extra.description}"
    messages = [item["msg"].replace("Input should be", "must be") for item in error.errors()]
    return " or ".join(dict.fromkeys(messages)).replace(" or must be", " or")


def advice(path: str, known: list[str]) -> str:
    """What to write instead of a key that is not there."""
    return f"it is {MOVED[path]} now" if path in MOVED else nearest_name(path.rpartition(".")[2], known)


def nearest_name(word: str, known: list[str]) -> str:
    """The known name that a misspelled one was probably meant to be, and all that are known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"known: {', '.join(sorted(known))}"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def check_protocol(config: Config) -> None:
    """The switches of the protocol that need, or would ignore, one another."""
    dataset, budget = config["dataset"], config["budget"]
    ratios = (
        ("dataset", dataset, "imbalance", "imbalance_ratio", ("long_tailed", "stepped")),
        ("budget", budget, "initial_pool", "initial_ratio", ("imbalanced",)),
    )
    for group, node, kind, ratio, uneven in ratios:
        chosen, value = node.get(kind), node.get(ratio)
        if chosen in uneven and value is None:
            raise UserError(f"{group}.{ratio}=null: must be a number of at least 1 with {group}.{kind}={chosen}")
        if chosen not in uneven and value is not None:
            raise UserError(f"{group}.{ratio}={value}: must be null unless {group}.{kind} is {' or '.join(uneven)}")
    if (config.get("oracle") or {}).get("_target_") == "sslpl.oracle.FileOracle":
        check_label_files(config)
    if config["training"].get("checkpoint") == "best" and budget.get("validation", 0.0) == 0:
        raise UserError("training.checkpoint=best: must be last unless budget.validation is above 0, to choose by")
    check_initial_query(config)


def check_initial_query(config: Config) -> None:
    """A strategy can choose the first images if it needs no label, by embeddings that say something."""
    if config["budget"].get("initial_pool") != "query":
        return
    name = str(config["query"].get("_target_"))
    if not getattr(get_object(name), "works_unlabeled", False):
        raise UserError(
            f"budget.initial_pool=query: query must need no labels, as typiclust, probcover and random; "
            f"{name.rpartition('.')[2]} is not marked so (works_unlabeled)"
        )
    if config["backbone"].get("weights") is None:
        raise UserError(
            "budget.initial_pool=query: backbone.weights must be imagenet or a file of weights "
            "(python -m sslpl.pretrain), for the embeddings of random weights say nothing"
        )


def check_label_files(config: Config) -> None:
    """What needs labels that nobody has told yet."""
    dataset, budget = config["dataset"], config["budget"]
    usual = (
        ("dataset", dataset, "imbalance", ("none",)),
        ("dataset", dataset, "label_noise", (0.0,)),
        ("budget", budget, "initial_pool", ("random", "query")),
    )
    for group, node, key, values in usual:
        if node.get(key, values[0]) not in values:
            wanted = " or ".join(map(str, values))
            raise UserError(f"{group}.{key}={node[key]}: must be {wanted} with oracle=file, for it needs all labels")
    for path, node in target_nodes("query", config["query"]):
        if node.get("oracle_baseline"):
            raise UserError(f"{path}.oracle_baseline=true: must be false with oracle=file, for it needs all labels")


def check_without_module(config: Config) -> None:
    """Without a module nothing can be fine-tuned, and no strategy can ask for predicted losses."""
    if config["ssl"].get("_target_") != "sslpl.ssl.no_ssl":
        raise UserError("module=none: ssl must be none, since there is no module to learn from unlabeled images")
    for path, node in target_nodes("query", config["query"]):
        if getattr(get_object(node["_target_"]), "needs_module", False):
            raise UserError(f"module=none: {path} needs predicted losses; choose module=convolutional or module=pooled")
