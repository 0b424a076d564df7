"""Every config file composes; every published experiment runs a cycle on files in the published layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Result, run_folder
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from layouts import write_caltech101, write_cifar10, write_cifar100, write_fashion_mnist
from omegaconf import OmegaConf, open_dict
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from sslpl.config.validation import validated_config
from sslpl.run.errors import CONF

Command = Callable[..., Result]
ROOT = Path(__file__).parents[1]
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "dataset"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
IMAGE_EXPERIMENTS = [experiment for experiment in EXPERIMENTS if experiment != "embeddings"]
WRITERS = {
    "cifar10": write_cifar10, "cifar10_imbalanced": write_cifar10, "cifar100": write_cifar100,
    "fashion_mnist": write_fashion_mnist, "caltech101": write_caltech101,
}  # fmt: skip


def write_dataset(experiment: str, root: Path, images: int = 240) -> None:
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    (name,) = [name for name in WRITERS if f"/dataset: {name}\n" in text]
    WRITERS[name](root, images, 40, np.random.default_rng(0))


STRATEGIES = sorted(path.stem for path in (CONF / "query").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "full")
SWEEPS = sorted(path.stem for path in (ROOT / "multirun_sweeps").glob("*.yaml"))
QUICK = (
    *("training.epochs=1", "training.finetune_epochs=1", "budget.initial=20", "budget.per_cycle=10", "budget.cycles=2"),
    *("budget.candidates=100", "tracker=none", "runtime.progress=none", "runtime.num_threads=1"),
)


FEWER_STEPS = {
    **{name: ["query.steps=2"] for name in ("vaal", "ta_vaal", "uncertain_gcn", "core_gcn")},
    **{name: ["query.depth=2", "query.batches=7"] for name in ("refine", "refine_expected_loss")},
    "boss": ["query.batches=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(sslpl: Command, method: str) -> None:
    done = sslpl(*QUICK, f"method={method}", *FEWER_STEPS.get(method, []))
    assert done.code == 0, done.err
    assert len((run_folder() / "metrics.csv").read_text().splitlines()) == 3
    ledger = (run_folder() / "queries.csv").read_text().splitlines()[1:]
    assert len({line.split(",")[1] for line in ledger}) == 30


def test_every_strategy_belongs_to_a_method_or_runs_with_one(sslpl: Command) -> None:
    presets = "".join((CONF / "method" / f"{method}.yaml").read_text() for method in METHODS)
    without_method = [name for name in STRATEGIES if f"override /query: {name}\n" not in presets]
    assert without_method == [
        *("badge_highest_loss", "boss", "class_balanced_random", "dropout_entropy", "expected_loss_reduction"),
        *("greedy_oracle", "predicted_loss", "refine_expected_loss", "uherding_expected_loss"),
    ]
    for name in without_method:
        done = sslpl(*QUICK, f"query={name}", *FEWER_STEPS.get(name, []))
        assert done.code == 0, done.err


def check_values(folder: str, name: str, values: dict[str, list[str]], *overrides: str) -> None:
    """Checks that each value of each key gives a valid config, with the first value of every other key."""
    first = {key: options[0] for key, options in values.items()}
    GlobalHydra.instance().clear()
    with initialize_config_dir(folder, version_base="1.3"):
        for key, options in values.items():
            for value in options:
                chosen = [f"{name}={option}" for name, option in (first | {key: value}).items()]
                cfg = compose(name, overrides=[*overrides, *chosen], return_hydra_config=True)
                with open_dict(cfg):
                    del cfg["hydra"]
                validated_config(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def values_of(key: str, sweep: str) -> list[str]:
    """Lists the values that a sweep tries, the limits of an interval."""
    (override,) = OverridesParser.create().parse_overrides([f"{key}={sweep}"])
    if override.is_interval_sweep():
        return [str(override.value().start), str(override.value().end)]
    return [str(value) for value in override.sweep_string_iterator()] if override.is_sweep_override() else [sweep]


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes_and_is_valid(sweep: str) -> None:
    text = yaml.safe_load((ROOT / "multirun_sweeps" / f"{sweep}.yaml").read_text())
    values = {key: values_of(key, str(node)) for key, node in text["hydra"]["sweeper"]["params"].items()}
    assert any(len(options) > 1 for options in values.values())
    values |= {"seed": values["seed"][:1]} if "seed" in values else {}  # any seed is as valid
    check_values(str(ROOT / "multirun_sweeps"), sweep, values, f"hydra.searchpath=[file://{CONF}]")


@pytest.mark.parametrize("file", sorted((ROOT / "multirun_sweeps").glob("wandb/*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_wandb_is_valid(sslpl: Command, file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["metric"] == {"name": "aubc", "goal": "maximize"}
    options = {
        key: [node["value"]] if "value" in node else node.get("values", [node.get("min"), node.get("max")])
        for key, node in sweep["parameters"].items()
    }
    check_values(str(CONF), "config", {key: [str(value) for value in values] for key, values in options.items()})
    arguments = create_sweep_command_args({"args": {key: {"value": values[-1]} for key, values in options.items()}})
    assert create_sweep_command(sweep["command"]) == ["${env}", "python", "run.py", "${args_no_hyphens}"]
    done = sslpl(*arguments["args_no_hyphens"], *QUICK)
    assert done.code == 0, done.err
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert config["seed"] == options["seed"][-1]
    assert config["training"]["finetune_rate"] == options["training.finetune_rate"][-1]


def test_the_sweeps_cover_the_components_of_the_method() -> None:
    found = {key for sweep in SWEEPS for key in yaml.safe_load(
        (ROOT / "multirun_sweeps" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]}  # fmt: skip
    expected = "method ssl ranking module ssl.threshold training.finetune_epochs training.unlabeled_batch_limit"
    expected += " budget.candidates query/selector budget training.warm_start training.trim backbone dataset.imbalance"
    assert found >= set(expected.split())


@pytest.mark.parametrize(
    ("group", "option"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair[0] == "backbone"))
        for pair in OPTIONS
        if pair[0] not in ("experiment", "method", "query")
    ],
)
def test_every_option_composes_and_is_valid(sslpl: Command, group: str, option: str) -> None:
    requirements = {("module", "none"): ["method=random"], ("training", "head"): ["backbone=linear"]}
    required = requirements.get((group, option), [])
    done = sslpl(*required, f"{group}={option}", "tracker=none", "runtime.dry_run=true", "budget.candidates=300",
                 "budget.initial=20", "budget.per_cycle=20", "budget.cycles=2", "training.batch_size=8")  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_is(experiment: str) -> None:
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()[:6]
    assert head[0] == "# @package _global_"
    assert any(f"python run.py experiment={experiment}" in line for line in head)
    assert any("result" in line.lower() for line in head)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", IMAGE_EXPERIMENTS)
def test_every_experiment_runs_a_cycle(sslpl: Command, tmp_path: Path, experiment: str) -> None:
    write_dataset(experiment, tmp_path / "files", images=100)
    tiny = (
        *("training.epochs=1", "training.min_steps=0", "training.finetune_epochs=1", "budget.initial=16"),
        *("budget.per_cycle=8", "budget.cycles=2", "budget.candidates=60", "tracker=none", "runtime.progress=none"),
        f"dataset.root={tmp_path / 'files'}",
    )
    done = sslpl(f"experiment={experiment}", *tiny)
    assert done.code == 0, done.err
    assert len((run_folder() / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("experiment", IMAGE_EXPERIMENTS)
def test_the_fully_supervised_ceiling_works_with_every_experiment(
    sslpl: Command, tmp_path: Path, experiment: str
) -> None:
    write_dataset(experiment, tmp_path / "files")
    done = sslpl(f"experiment={experiment}", "method=full", f"dataset.root={tmp_path / 'files'}", "tracker=none",
                 "runtime.dry_run=true", "training.batch_size=8")  # fmt: skip
    assert done.code == 0, done.err
    pool = {"sslpm_cifar10_imbalanced": 5 * 24 + 5 * 1, "sslpm_caltech101": 280 - 22}.get(experiment, 240)
    assert str(pool) in done.out.splitlines()[1]
