"""Dropout and drop path: masks depend only on seed, cycle, epoch, step and process, in every training."""

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from hydra.utils import instantiate
from test_identity import config_of
from torch import Generator, Tensor, nn
from torch.nn import functional

from sslpl.config.build import build_setup
from sslpl.data.datasets import digits
from sslpl.distributed.world import World
from sslpl.learn.joint_step import mask_draws
from sslpl.loop import initial_state
from sslpl.models.backbone import small_cnn
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.libraries import torchvision
from sslpl.phases.query import run_strategy
from sslpl.pretrain.simclr import Pretraining, PretrainState, SimCLR, initial_pretrain_state, pretrain, projection_head
from sslpl.pretrain.simclr_views import SimCLRViews
from sslpl.recording import checkpoint
from sslpl.seeds import build_seeded, rng, seeded_draws
from sslpl.setup import Setup
from sslpl.types import Features, QueryContext, Selection

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
DROPOUT = ("backbone.dropout=0.3",)
DROP_PATH = ("backbone=torchvision", "backbone.name=efficientnet_b0", "training.rate=0.01", "budget.cycles=1")
CPU = torch.device("cpu")


def result(folder: Path) -> dict[str, Any]:
    """Returns what two equal runs have in common, bit for bit."""
    networks = torch.load(folder / "checkpoint" / "weights.pt", weights_only=True)
    weights = {f"{part} {name}": value for part in ("backbone", "module") for name, value in networks[part].items()}
    return {"metrics": timeless(folder), "queries": (folder / "queries.csv").read_bytes(), "weights": weights}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["metrics"] == right["metrics"]
    assert left["queries"] == right["queries"]
    torch.testing.assert_close(left["weights"], right["weights"], rtol=0, atol=0)


def run(sslpl: Command, folder: str, *options: str) -> dict[str, Any]:
    done = sslpl(*TINY, *options, f"runtime.output_dir={folder}")
    assert done.code == 0, done.err
    return result(run_folder(Path(folder)))


def dies_at_checkpoint(monkeypatch: Patch, call: int) -> None:
    """Kills the run at its n-th checkpoint (from 1)."""
    save, calls = checkpoint.save, []

    def deadly(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == call:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", deadly)


@pytest.mark.slow
@pytest.mark.parametrize("options", [DROPOUT, DROP_PATH], ids=["dropout", "drop path"])
def test_a_run_with_random_layers_repeats_itself_and_survives_a_kill(
    sslpl: Command, monkeypatch: Patch, options: tuple[str, ...]
) -> None:
    torch.manual_seed(1)
    first = run(sslpl, "first", *options)
    torch.manual_seed(2)  # whatever the global state is
    assert_same(run(sslpl, "second", *options), first)
    with monkeypatch.context() as patch:
        dies_at_checkpoint(patch, 3)
        with pytest.raises(Killed):
            sslpl(*TINY, *options, "runtime.output_dir=killed", "runtime.checkpoint_minutes=0")
    assert_same(run(sslpl, "killed", *options), first)


@pytest.mark.parametrize("task", ["fixmatch", "mean_teacher"])
def test_so_does_one_whose_backbone_learns_from_unlabeled_images(sslpl: Command, task: str) -> None:
    options = (*DROPOUT, f"task_ssl={task}", "budget.cycles=1", "training.epochs=1")
    assert_same(run(sslpl, "first", *options), run(sslpl, "second", *options))


def test_a_run_leaves_the_global_random_state_alone(sslpl: Command) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(sslpl, "once", *DROPOUT, "budget.cycles=1")
    assert torch.equal(torch.get_rng_state(), before)


def setup_of(*overrides: str) -> Setup:
    config = config_of(*overrides)[0]
    return build_setup(config, instantiate(config["runtime"]))


class Functional(nn.Module):
    def __init__(self, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


def attention(x: Tensor) -> Tensor:
    rows = x.flatten(2)
    return functional.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.5)


def drop_path(x: Tensor) -> Tensor:
    layers = pytest.importorskip("timm.layers")
    return layers.DropPath(0.5)(x)


def stochastic_depth(x: Tensor) -> Tensor:
    from torchvision.ops import StochasticDepth

    return StochasticDepth(0.5, "row")(x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: nn.Dropout(0.5),
    "Dropout2d": lambda: nn.Dropout2d(0.5),
    "AlphaDropout": lambda: nn.AlphaDropout(0.5),
    "functional dropout": lambda: Functional(lambda x: functional.dropout(x, 0.5)),
    "attention": lambda: Functional(attention),
    "stochastic depth": lambda: Functional(stochastic_depth),
    "drop path": lambda: Functional(drop_path),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_depends_on_seed_cycle_epoch_step_and_process_alone(name: str) -> None:
    layer, images = LAYERS[name]().train(), torch.ones(16, 8, 4, 4)

    def masked(*moment: int, seed: int = 0) -> list[float]:
        with seeded_draws(CPU, seed, "masks", *moment):
            return layer(images).flatten().tolist()

    torch.manual_seed(3)
    first = masked(1, 2, 3, 0)
    torch.rand(7)
    assert masked(1, 2, 3, 0) == first
    others = [masked(0, 2, 3, 0), masked(1, 0, 3, 0), masked(1, 2, 0, 0), masked(1, 2, 3, 1)]
    others.append(masked(1, 2, 3, 0, seed=1))
    if name != "attention":  # of equal rows any mean is the same
        assert all(other != first for other in others)


def test_processes_draw_other_masks() -> None:
    setup = setup_of(*TINY)
    state, masks = initial_state(setup), []
    for world in (World(0, 2), World(1, 2), World(0, 2)):
        with mask_draws(setup._replace(world=world), state):
            masks.append(functional.dropout(torch.ones(100)).tolist())
    assert masks[0] == masks[2] != masks[1]


def test_draws_go_on_outside_as_they_were() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with suppress(KeyError), seeded_draws(CPU, 0, "masks"):
        torch.rand(5)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(0)
    build_seeded(lambda: torch.rand(5), 0, "weights")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["small_cnn", "efficientnet_b0"])
def test_what_the_fine_tune_and_the_query_see_has_no_mask(name: str) -> None:
    shape = {"num_classes": 3, "in_channels": 1, "dropout": 0.5}
    network = small_cnn(**shape) if name == "small_cnn" else torchvision(**shape, image_size=8, name=name)  # type: ignore[arg-type]
    images, frozen = torch.randn(4, 1, 8, 8), FrozenBackbone(network.train(), bfloat16=False)
    before = torch.get_rng_state()
    assert torch.equal(frozen(images).logits, frozen(images).logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training


class Dropping(nn.Module):
    """A backbone that applies dropout to its embedding, not only before its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Features:
        features: Features = self.network(images)
        return features._replace(embedding=functional.dropout(features.embedding, 0.5, self.training))


def contrastive(killed_after: int | None = None) -> PretrainState:
    """Runs two epochs of three steps; with a kill, the second process resumes from the checkpoint."""
    data, options = digits("data"), SimCLR(epochs=2, batch_size=400, precision="float32")
    jitter = {"jitter": 0.5, "jitter_probability": 0.8, "gray_probability": 0.2}
    views = SimCLRViews(data.mean, data.std, flip=False, smallest_crop=0.5, **jitter)  # type: ignore[arg-type]
    task = Pretraining(options, data.train, views, 0, CPU, bfloat16=False)

    def fresh() -> PretrainState:
        network = build_seeded(lambda: Dropping(small_cnn(num_classes=10, in_channels=1)), 0, "network")
        projection = build_seeded(lambda: projection_head(256, 8), 0, "projection")
        return initial_pretrain_state(network, projection, options, CPU)

    state = fresh()
    for step, _ in enumerate(pretrain(task, state), start=1):
        if step == killed_after:
            saved = copy.deepcopy(state.to_dict())
            state = fresh()
            state.load(saved)
            list(pretrain(task, state))
            break
    return state


def test_a_contrastive_pre_training_repeats_its_masks_and_survives_a_kill() -> None:
    whole, again, killed = contrastive(), contrastive(), contrastive(killed_after=2)
    for other in (again, killed):
        torch.testing.assert_close(other.backbone.state_dict(), whole.backbone.state_dict(), rtol=0, atol=0)


def test_what_a_strategy_draws_globally_is_seeded() -> None:
    def by_dropout(context: QueryContext, n: int, rng: Generator) -> Selection:
        score = functional.dropout(torch.ones(len(context.unlabeled))).double()
        return Selection(context.unlabeled[score.argsort(stable=True)][:n], score[:n])

    setup = setup_of(*TINY)._replace(query=by_dropout)
    state = initial_state(setup)
    first, second = (run_strategy(setup, state, 5, rng(0, "query")).index.tolist() for _ in range(2))
    assert first == second
