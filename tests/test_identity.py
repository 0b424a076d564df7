"""Which run a config is: what changes its id, what does not, and how it is labeled."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sslpl import cli, identity


def composed(*overrides: str) -> tuple[dict, dict]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        config, choices = cli.composed(list(overrides))
        label = identity.label(config, choices, cli.composed)
    return config, {"label": label, "id": identity.run_id(config)}


@pytest.mark.parametrize(
    "override",
    [
        "runtime.device=cpu", "runtime.compile=false", "runtime.num_threads=3", "runtime.deterministic=true",
        "runtime.checkpoint_minutes=1", "runtime.output_dir=elsewhere", "runtime.progress=none", "runtime.dry_run=true",
        "tracker=none", "tracker.project=other", "tracker.mode=offline", "dataset.root=elsewhere",
    ],
)  # fmt: skip
def test_what_cannot_change_a_result_does_not_change_the_id(override: str) -> None:
    assert composed(override)[1] == composed()[1]


SCIENCE = [
    "seed=1", "dataset=fashion_mnist", "dataset.flip=true", "dataset.cutout=3", "backbone=resnet18",
    "backbone.dropout=0.1", "module=pooled", "module.width=64", "ranking=margin", "ssl=none", "ssl=pseudo_label_hard",
    "ssl.threshold=0.8", "query=random", "query.subset=100", "query/scorer=entropy", "query/selector=top",
    "budget=one_percent", "budget.initial=10", "budget.initial=1", "budget.initial=1.0", "budget.per_cycle=10",
    "budget.cycles=2", "budget.candidates=300", "training=short", "method=scal", "method=random", "method=entropy",
    "method=learning_loss", "method=full", "training.trim=false", "training.warm_start=false", "training.rate=0.2",
    "training.precision=float32", "training.decay_at=[0.5]", "training.detach_after=0.5", "training.batch_size=64",
]  # fmt: skip


def test_whatever_can_change_a_result_changes_the_id() -> None:
    ids = {override: composed(override)[1]["id"] for override in SCIENCE}
    assert len(set(ids.values())) == len(ids)
    assert composed()[1]["id"] not in ids.values()
    assert all(len(i) == 8 and int(i, 16) >= 0 for i in ids.values())


@pytest.mark.parametrize(
    ("overrides", "label"),
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
        (["method=random", "training.trim=true"], "random+trim=true"),
        (["module=pooled", "module.width=64"], "sslpm+module=pooled+module.width=64"),
    ],
)
def test_a_label_is_the_method_and_what_differs_from_its_preset(overrides: list[str], label: str) -> None:
    assert composed(*overrides)[1]["label"] == label


def test_a_folder_has_dataset_label_seed_and_id() -> None:
    config, run = composed("seed=3")
    assert str(identity.folder(config, "digits", run["label"])) == f"outputs/digits/sslpm/seed3-{run['id']}"
