"""The configs of a sweep are composed once for all runs that differ in their seed alone."""

import pickle
from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sslpl.files import CONF
from sslpl.run.composition import SharedComposition


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", ["dataset=digits", "method=random,margin"], RunMode.MULTIRUN)


class Counting:
    """A loader that counts how often it composes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader, self.count = loader, 0

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.count += 1
        return self.loader.load_sweep_config(master, overrides)


def test_each_run_has_the_config_that_hydra_composes(loader: ConfigLoader, master: DictConfig) -> None:
    counting = Counting(loader)
    shared = SharedComposition(counting)  # type: ignore[arg-type]
    for overrides in (
        ["method=random", "seed=0"],
        ["method=random", "seed=12"],
        ["method=margin", "budget.cycles=3", "seed=12"],
        ["method=margin", "budget.cycles=3", "seed=7"],
        ["method=random", "seed=1"],
    ):
        expected = loader.load_sweep_config(master, overrides)
        assert OmegaConf.to_container(shared.load_sweep_config(master, overrides)) == OmegaConf.to_container(expected)
    assert counting.count == 2


def test_a_change_of_one_run_is_not_seen_by_the_next(loader: ConfigLoader, master: DictConfig) -> None:
    shared = SharedComposition(loader)
    shared.load_sweep_config(master, ["seed=0"]).training.epochs = 1
    assert shared.load_sweep_config(master, ["seed=1"]).training.epochs == 200


@pytest.mark.parametrize("overrides", [[], ["seed=null"], ["seed=-1"], ["seed=007"], ["seed=1", "seed=2"]])
def test_everything_else_is_left_to_hydra(loader: ConfigLoader, master: DictConfig, overrides: list[str]) -> None:
    counting = Counting(loader)
    shared = SharedComposition(counting)  # type: ignore[arg-type]
    for _ in range(2):
        shared.load_sweep_config(master, overrides)
    assert counting.count == 2


def test_launchers_can_send_it_to_other_processes(loader: ConfigLoader, master: DictConfig) -> None:
    shared = pickle.loads(pickle.dumps(SharedComposition(loader)))
    assert shared.load_sweep_config(master, ["seed=4"]).seed == 4
    assert "digits" in shared.get_group_options("dataset")
