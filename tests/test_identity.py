"""The identity of a run: what changes its id, what does not, and its method name."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sslpl.config import identity
from sslpl.run import errors, jobs
from sslpl.types import UserError


def config_of(*overrides: str) -> tuple[dict, dict]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(errors.CONF), version_base="1.3"):
        return jobs.compose_config(overrides)


def composed(*overrides: str) -> tuple[dict, dict]:
    config, choices = config_of(*overrides)
    with initialize_config_dir(str(errors.CONF), version_base="1.3"):
        name = identity.method_name(config, choices, lambda changed: jobs.compose_config(tuple(changed)))
    return config, {"method_name": name, "id": identity.run_id(config)}


@pytest.mark.parametrize(
    "override",
    [
        "runtime.device=cpu", "runtime.compile=false", "runtime.num_threads=3", "runtime.deterministic=true",
        "runtime.checkpoint_minutes=1", "runtime.output_dir=other", "runtime.progress=none", "runtime.dry_run=true",
        "tracker=none", "tracker.project=other", "tracker.mode=offline", "dataset.root=other", "oracle=simulated",
        "runtime.held_gib=1",
    ],
)  # fmt: skip
def test_what_cannot_change_a_result_does_not_change_the_id(override: str) -> None:
    assert composed(override)[1] == composed()[1]


def test_how_strictly_labels_are_read_does_not_change_the_id() -> None:
    loose = ("oracle=file", "oracle.partial=true", "oracle.new_classes=true")
    assert composed(*loose)[1] == composed("oracle=file")[1]


# No file that moves changes an id; a change on purpose needs a new version and a line in the changelog.
PINNED = {
    (): "cf062144ce8f",
    ("method=random", "seed=3"): "b1c7173fd935",
    ("dataset=cifar100", "backbone=resnet18", "method=badge"): "6cef2f1394f8",
    ("experiment=sslpm_cifar10",): "c1634e716458",
    ("method=entropy", "task_ssl=fixmatch", "query.subset=100"): "85c3e52286ea",
}


@pytest.mark.parametrize("overrides", PINNED)
def test_ids_are_pinned(overrides: tuple[str, ...]) -> None:
    assert composed(*overrides)[1]["id"] == PINNED[overrides]


SCIENCE = [
    "seed=1", "dataset=fashion_mnist", "dataset.flip=true", "dataset.cutout=3", "backbone=resnet18",
    "backbone.freeze=true training.augment=true", "backbone.freeze=true method=scal", "backbone.weights=imagenet",
    "backbone.dropout=0.1", "module=pooled", "module.width=64", "ranking=margin", "ssl=none", "ssl=pseudo_label_hard",
    "ssl.threshold=0.8", "query=random", "query.subset=100", "query/scorer=entropy", "query/selector=top",
    "budget=one_percent", "budget.initial=10", "budget.initial=1", "budget.initial=1.0", "budget.per_cycle=10",
    "budget.cycles=2", "budget.candidates=300", "training=short", "method=scal", "method=random", "method=entropy",
    "method=learning_loss", "method=full", "training.trim=false", "training.warm_start=false", "training.rate=0.2",
    "training.precision=float32", "training.decay_at=[0.5]", "training.detach_after=0.5", "training.batch_size=64",
    "budget.validation=0.1", "training.checkpoint=best budget.validation=0.1", "budget.initial_pool=balanced",
    "budget.initial_pool=imbalanced budget.initial_ratio=5", "budget.initial_pool=imbalanced budget.initial_ratio=6",
    "task_ssl=fixmatch", "task_ssl=uda", "task_ssl=fixmatch task_ssl.ratio=3", "oracle=file",
    "backbone.weights=a.pt budget.initial_pool=query method=typiclust",
    "dataset.open_set=0.2", "dataset.open_set=[3]", "oracle=crowd", "oracle=crowd oracle.annotators=2",
    "budget.seconds=60 budget.seconds_per_label=1", "budget.seconds_per_label=2", "budget.stop=expected_gain",
    "budget.stop=stable_predictions",
    "dataset.label_noise=0.1", "dataset.imbalance=stepped dataset.imbalance_ratio=5",
    "dataset.imbalance=long_tailed dataset.imbalance_ratio=5", "dataset.imbalance=stepped dataset.imbalance_ratio=6",
]  # fmt: skip


def test_whatever_can_change_a_result_changes_the_id() -> None:
    ids = {override: identity.run_id(config_of(*override.split())[0]) for override in SCIENCE}
    assert len(set(ids.values())) == len(ids)
    assert identity.run_id(config_of()[0]) not in ids.values()
    assert all(len(i) == 12 and int(i, 16) >= 0 for i in ids.values())


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of every value of a config."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from leaves(child, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("overrides", [[], ["dataset=cifar100", "method=learning_loss", "ranking=margin"]])
def test_every_value_counts_except_where_and_how_a_run_executes(overrides: list[str]) -> None:
    config, run = composed(*overrides)
    for path in leaves(config):
        changed = copy.deepcopy(config)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = "something else"
        locations = (("dataset", "root"), ("dataset", "download"), ("budget", "target"))
        ignored = path[0] in ("runtime", "tracker") or path in locations
        assert (identity.run_id(changed) == run["id"]) == ignored, path


def test_a_file_of_weights_counts_by_content_not_by_path() -> None:
    config = config_of()[0]
    ids = {
        identity.run_id(
            config | {"backbone": config["backbone"] | {"weights": weights, "weights_fingerprint": content}}
        )
        for weights, content in (("a.pt", "1"), ("b.pt", "1"), ("a.pt", "2"))
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    "group",
    ["dataset", "backbone", "module", "ranking", "ssl", "task_ssl", "query", "budget", "training", "method"],
)
def test_every_option_of_a_scientific_group_is_a_run_of_its_own(group: str) -> None:
    config, choices = config_of()
    ids = {identity.run_id(config): choices[group]}
    for option in (path.stem for path in (errors.CONF / group).glob("*.yaml")):
        if option == choices[group]:
            continue
        try:
            run = identity.run_id(config_of(f"{group}={option}")[0])
        except UserError:  # it requires another choice
            continue
        assert run not in ids, (option, ids[run])
        ids[run] = option
    assert len(ids) > 1


def test_an_int_is_the_same_as_a_float_where_a_float_is_expected() -> None:
    assert composed("training.rate=1", "ssl.threshold=1")[1] == composed("training.rate=1.0", "ssl.threshold=1.0")[1]
    assert composed("budget.initial=1")[1] != composed("budget.initial=1.0")[1]  # one image, all images


@pytest.mark.parametrize(
    ("overrides", "method_name"),
    [
        ([], "sslpm"),
        (["method=scal"], "scal"),
        (["seed=3", "training.epochs=7", "budget.initial=10", "backbone=resnet18"], "sslpm"),
        (["query=entropy"], "sslpm+query=entropy"),
        (["query=selective_clustering"], "sslpm"),
        (["method=learning_loss", "query=random"], "learning_loss+query=random"),
        (["query/scorer=entropy"], "sslpm+query.scorer=entropy"),
        (["method=learning_loss", "query.subset=500"], "learning_loss+query.subset=500"),
        (["ssl=pseudo_label_hard", "ranking=margin"], "sslpm+ssl=pseudo_label_hard+ranking=margin"),
        (["ssl.threshold=0.8"], "sslpm+ssl.threshold=0.8"),
        (["training.trim=false", "training.warm_start=false"], "sslpm+trim=false+warm_start=false"),
        (["budget.validation=0.1", "training.checkpoint=best", "dataset.label_noise=0.1"], "sslpm"),
        (["method=random", "training.trim=true"], "random+trim=true"),
        (["module=pooled", "module.width=64"], "sslpm+module=pooled+module.width=64"),
    ],
)
def test_a_method_name_is_the_method_and_its_differences_from_the_preset(
    overrides: list[str], method_name: str
) -> None:
    assert composed(*overrides)[1]["method_name"] == method_name


def test_a_folder_has_dataset_method_name_seed_and_id() -> None:
    config, run = composed("seed=3")
    assert str(identity.run_folder(config, "digits", run["method_name"])) == f"outputs/digits/sslpm/seed3-{run['id']}"
