"""Several processes share one run: the shards of each, and that their results equal those of one process."""

import dataclasses
import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Result, run_folder
from hydra.utils import instantiate
from torch import nn
from torch.overrides import TorchFunctionMode

from sslpl import ranking
from sslpl.config.plans import Plan
from sslpl.data.augmentation import WeakDraws
from sslpl.data.batches import group_batches, shard_batches
from sslpl.distributed.batch_norm import can_skip_forward, synchronized_batch_norm
from sslpl.distributed.collectives import (
    all_gather,
    all_reduce_sum,
    broadcast_shards,
    offsets,
    on_rank_zero,
    published_failure,
)
from sslpl.distributed.world import World, process_group
from sslpl.files import write_json
from sslpl.learn.joint_step import gradients
from sslpl.learn.unlabeled_batches import LabeledBatch, TaskTraining, UnlabeledBatch
from sslpl.models.backbone import small_cnn
from sslpl.recording.folder import resumed_provenance
from sslpl.recording.signals import FollowerObserver, Interrupted
from sslpl.run.errors import SweepStopped
from sslpl.run.jobs import Command
from sslpl.run.launch import check_same_run
from sslpl.runtime import Runtime
from sslpl.seeds import build_seeded
from sslpl.ssl.task_method import TaskData
from sslpl.types import Features, UserError

ROOT = Path(__file__).resolve().parents[1]


def worlds(size: int) -> list[World]:
    return [World(rank, size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 50])
def test_parts_make_up_the_whole(size: int, count: int) -> None:
    shares = [torch.arange(count)[world.shard(count)] for world in worlds(size)]
    assert torch.cat(shares).tolist() == list(range(count))
    assert [len(share) for share in shares] == worlds(size)[0].shard_sizes(count)
    held = [world.paired_shard(count) for world in worlds(size)]
    assert sorted(torch.cat(held).tolist()) == list(range(count))
    assert max(map(len, held)) - min(map(len, held)) <= 3


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7, 16, 17])
def test_the_ranking_loss_of_the_parts_is_that_of_the_batch(loss, size: int, count: int) -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(count), torch.randn(count)
    parts = [world.paired_shard(count) for world in worlds(size)]
    weights = [(len(part) // 2) / max(count // 2, 1) for part in parts]
    assert sum(weights) == pytest.approx(float(count > 1))
    total = sum(weight * loss(predicted[part], target[part]) for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(total, loss(predicted, target))


def test_the_draws_of_an_image_stay_with_it() -> None:
    batches = [torch.tensor([7, 3, 9, 4, 8]), torch.tensor([1, 5])]
    draws = WeakDraws(torch.zeros(7), torch.cat(batches)[:, None].expand(7, 2))
    for world in worlds(3):
        held, own = shard_batches(world, batches, draws)
        assert own.shift[:, 0].tolist() == torch.cat(held).tolist()
    assert [batch.tolist() for batch in shard_batches(World(0, 2), batches, draws)[0]] == [[7, 4], [1, 5]]
    assert [batch.tolist() for batch in shard_batches(World(1, 2), batches, draws)[0]] == [[3, 9, 8], []]
    assert offsets([5, 2]) == [0, 5]


def test_a_process_may_hold_nothing_of_the_first_batch() -> None:
    batches = [torch.arange(0), torch.arange(2)]
    assert sum(map(len, group_batches(batches, torch.device("cpu"), (1, 8, 8)))) == 2


@pytest.mark.parametrize("normalized", [False, True])
def test_a_network_without_batch_norm_passes_no_empty_part(normalized: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1) if normalized else nn.GroupNorm(1, 1))
    assert can_skip_forward(network, torch.ones(0, 1, 8, 8)) != normalized
    assert not can_skip_forward(network, torch.ones(1, 1, 8, 8))


def test_weights_without_a_gradient_count_nothing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)], lr=1)
    assert [gradient.tolist() for gradient in gradients(optimizer)] == [[0, 0]]


def test_a_sweep_is_refused_before_there_is_a_run() -> None:
    with pytest.raises(SweepStopped, match="not a sweep"):
        Command(World(1, 2)).refuse_sweep()


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some schedulers set it, without torchrun
    with process_group() as world:
        assert world == World()
    values = torch.ones(2)
    all_reduce_sum(world, [values])
    assert values.tolist() == [1, 1]
    assert all_gather(world, values, [2]) is values
    assert on_rank_zero(world, lambda: 3) == 3
    assert published_failure(world) == ""
    assert not isinstance(synchronized_batch_norm(world), TorchFunctionMode)


def test_options_that_need_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, 2, local_rank=1, local_size=2)
    for runtime, key in ((Runtime(compile=True), "runtime.compile=true"), (Runtime(device="cuda:1"), "cuda:1")):
        with pytest.raises(UserError, match=key):
            runtime.process_device(world, torch.device("cpu"))
    assert Runtime().process_device(world, torch.device("cuda")) == torch.device("cuda:1")
    assert Runtime().process_device(world, torch.device("cpu")) == torch.device("cpu")


def test_another_number_of_processes_is_said(tmp_path: Path) -> None:
    facts = dict.fromkeys(("git", "device_name", "threads", "precision", "compiled"))
    write_json(tmp_path / "provenance.json", facts | {"processes": 2})
    assert resumed_provenance(tmp_path, facts | {"processes": 4})[1] == [
        "this run began with processes 2: it goes on with 4"
    ]
    write_json(tmp_path / "provenance.json", facts)
    assert resumed_provenance(tmp_path, facts | {"processes": 4})[1] == []


def test_a_follower_stops_for_a_signal() -> None:
    follower = FollowerObserver(World())
    follower.on_phase_end(None)  # type: ignore[arg-type]
    follower.signal = 15
    with pytest.raises(Interrupted, match="SIGTERM"):
        follower.on_step(None, None)  # type: ignore[arg-type]


def started(size: int, script: list[str], folder: Path) -> list[Result]:
    """Runs a script in several processes with torchrun's environment; returns the result of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    common |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    processes = [
        subprocess.Popen(
            [sys.executable, *script],
            cwd=folder,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ends = [process.communicate(timeout=300) for process in processes]
    return [Result(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def test_two_processes_share_a_run(tmp_path: Path) -> None:
    options = [*TINY, "budget.cycles=2", "budget.initial=25", "training.epochs=1", "runtime.progress=plain"]
    first, second = started(2, [str(ROOT / "run.py"), *options], tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "files  " in first.out
    assert (second.out, second.err) == ("", "")
    assert '"processes": 2' in (run_folder(tmp_path) / "provenance.json").read_text()


@pytest.mark.slow
def test_two_processes_repeat_their_masks(tmp_path: Path) -> None:
    options = [*TINY, "budget.cycles=1", "budget.initial=25", "training.epochs=2", "backbone.dropout=0.5"]
    weights = []
    for folder_name in ("first", "second"):
        ends = started(2, [str(ROOT / "run.py"), *options, f"runtime.output_dir={folder_name}"], tmp_path)
        assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err
        folder = run_folder(tmp_path / folder_name)
        weights.append(torch.load(folder / "checkpoint" / "weights.pt", weights_only=True)["backbone"])
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_batch_norm_and_collectives_of_two_processes(tmp_path: Path) -> None:
    for end in started(2, [str(Path(__file__))], tmp_path):
        assert end.code == 0, end.err
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    images, network = example()
    expected = outcome(network, images, len(images))
    for part, dtype in ((saved[0], torch.float32), (saved[1], torch.float32)):
        for name, value in expected.items():
            torch.testing.assert_close(
                part[name], value.to(dtype), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n} {m}"
            )

    for rank, option in product(range(2), TASKS):
        part = torch.load(tmp_path / f"task{rank}.pt")[option]
        whole = unlabeled_outcome(option)
        assert any(whole[f"{step} gradient 0"].any() for step in range(3)), option
        for name, value in whole.items():
            torch.testing.assert_close(part[name], value, msg=lambda m, n=f"{option} {name}": f"{n} {m}")


def example() -> tuple[torch.Tensor, nn.Module]:
    torch.manual_seed(0)
    return 3 + torch.randn(7, 1, 8, 8), small_cnn(num_classes=3, in_channels=1)


def outcome(network: nn.Module, images: torch.Tensor, count: int, world: World = World()) -> dict[str, torch.Tensor]:  # noqa: B008
    """Returns gradients and running statistics after a training step on all images."""
    with synchronized_batch_norm(world):
        logits = network.train()(images).logits
    ((logits**2).sum() / count).backward()
    gradients = {f"grad {name}": value.grad for name, value in network.named_parameters()}
    all_reduce_sum(world, list(gradients.values()))
    return gradients | {name: value.float() for name, value in network.state_dict().items()}


def unlabeled_outcome(option: str, world: World = World()) -> dict[str, torch.Tensor]:  # noqa: B008
    """Returns loss terms and gradients of three steps of a method of `task_ssl`, with a linear network."""
    method, generator = task_method(option), torch.Generator().manual_seed(0)
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 4, generator=generator))
        network.bias.zero_()
    every = torch.arange(5) % 3
    data = TaskData(every, torch.full((3,), 1 / 3), 7, width=4, batch_size=5, unlabeled_batch_size=7)
    criterion = build_seeded(lambda: method.criterion(data), 0, "criterion")

    def forward(images: torch.Tensor) -> Features:
        return Features(network(images.flatten(1)), (), images.flatten(1))

    task = TaskTraining(method, criterion, forward, lambda _: torch.arange(7), world)
    weights, found = [*network.parameters(), *criterion.parameters()], {}
    for step in range(3):
        whole = torch.randn(len(method.views), 7, 1, 2, 2, generator=generator)
        labeled_images, own = torch.randn(5, 1, 2, 2, generator=generator), world.paired_shard(5)
        labeled = LabeledBatch(labeled_images[own], every[own], torch.arange(5)[own], 5)
        views = tuple(view[world.shard(7)] for view in whole)
        positions, truth = torch.arange(7), torch.zeros(7, dtype=torch.int64)
        batch = UnlabeledBatch(step, 3, torch.Generator().manual_seed(step), views, positions, truth)
        for weight in weights:
            weight.grad = None
        features = forward(torch.cat([labeled.views, *task.views(batch)]))
        loss = task.loss(labeled, batch, features, forward)
        supervised = torch.zeros(()) if loss.supervised is None else loss.supervised
        (loss.pseudo + loss.auxiliary + supervised).backward()
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        all_reduce_sum(world, gradients)
        terms = {"pseudo": loss.pseudo, "auxiliary": loss.auxiliary, "supervised": supervised}
        found |= {f"{step} {name}": value.detach() for name, value in terms.items()}
        found |= {f"{step} gradient {k}": gradient.clone() for k, gradient in enumerate(gradients)}
    return found


TASKS = (
    *("freematch", "flexmatch", "softmatch", "mean_teacher"),
    *("adamatch", "comatch", "dash", "remixmatch", "simmatch"),
)


def task_method(option: str) -> Any:
    """Builds a method whose thresholds a random network reaches."""
    config = yaml.safe_load((ROOT / "conf" / "task_ssl" / f"{option}.yaml").read_text())
    changed = {
        "freematch": {"fairness": 0.5},
        "comatch": {"threshold": 0.4, "memory": 1},
        "simmatch": {"threshold": 0.4},
        "dash": {"warm_up": 0.0},
    }
    return dataclasses.replace(instantiate(config), **changed.get(option, {}))


def in_one_of_two() -> None:
    """Runs in each process of `test_batch_norm_and_collectives_of_two_processes`."""
    with process_group() as world:
        images, network = example()
        torch.save(outcome(network, images[world.paired_shard(len(images))], len(images), world), f"{world.rank}.pt")
        torch.save({option: unlabeled_outcome(option, world) for option in TASKS}, f"task{world.rank}.pt")
        rows = torch.arange(5)[world.shard(5)]
        assert all_gather(world, rows, world.shard_sizes(5)).tolist() == [0, 1, 2, 3, 4]
        assert torch.cat(list(broadcast_shards(world, rows, world.shard_sizes(5)))).tolist() == [0, 1, 2, 3, 4]
        try:
            check_same_run(Plan({"dataset": {}, "seed": world.rank}, {}, "", Path()), world)
        except UserError as error:
            assert "must be that of the first process" in str(error)  # noqa: PT017
            assert world.rank == 1
        else:
            assert world.is_rank_zero
        seen: list[int] = []
        assert on_rank_zero(world, lambda: "said" if world.is_rank_zero else 1 / 0, seen.append) == "said"
        try:
            on_rank_zero(world, lambda: int("x"))
        except (ValueError, RuntimeError) as error:
            assert "invalid literal" in str(error)  # noqa: PT017
        sys.exit(0)


if __name__ == "__main__":
    in_one_of_two()
