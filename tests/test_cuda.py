"""On a GPU: equal draws, captured steps that equal eager ones, no synchronization inside an epoch."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from sslpl import ranking
from sslpl.budget import Budget
from sslpl.data.augmentation import Augmentation
from sslpl.data.datasets import digits
from sslpl.data.images import StreamedImages
from sslpl.learn.cuda_graphs import WARM_UP, CapturedSteps
from sslpl.learn.joint_step import JointInputs, mask_draws
from sslpl.learn.optimizers import joint_optimizer, set_rates
from sslpl.loop import empty_state, initial_state, run_active_learning
from sslpl.models.backbone import small_cnn
from sslpl.models.conv_norm import conv_relu
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.fused_norm import fused_batch_norms, norm_relu
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.resnet import resnet18
from sslpl.models.wide_resnet import wide_resnet28_2
from sslpl.phases.finetune import finetune
from sslpl.phases.train import train, training_step
from sslpl.query.score_then_select import score_then_select
from sslpl.query.scorers import predicted_loss
from sslpl.query.selective_clustering import selective_clustering
from sslpl.run.interleaved import InterleavedRuns
from sslpl.seeds import build_seeded
from sslpl.setup import Acceleration, Setup
from sslpl.ssl import rules
from sslpl.state import State, weights_of
from sslpl.training import Training
from sslpl.turns import Turns
from sslpl.types import Features

T = TypeVar("T")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic products of matrices
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_setup(
    device: str = "cuda", capture_steps: bool = False, bfloat16: bool = False, dropout: float = 0.0, **training: object
) -> Setup:
    data = digits("data")
    data = data._replace(train=data.train.to(device), test=data.test.to(device))
    shape, where = data.train.shape, torch.device(device)
    augmentation = Augmentation(
        shape, data.mean, data.std, flip=data.flip, padding=data.padding, cutout=data.cutout, device=where
    )

    def build(cycle: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        backbone = build_seeded(
            lambda: small_cnn(num_classes=10, in_channels=1, dropout=dropout), 0, f"backbone {cycle}"
        )
        module = build_seeded(lambda: LossPredictionModule(backbone.channels), 0, f"module {cycle}")
        return backbone.to(where, memory_format=torch.channels_last), module.to(where)

    query = partial(score_then_select, scorer=predicted_loss, selector=selective_clustering)
    tiny = {"epochs": 3, "finetune_epochs": 2, "batch_size": 32} | training
    return Setup(
        data, build, augmentation, ranking.bce_ranking_loss, rules.pseudo_label_soft, query, Budget(80, 40, 3, 300),
        Training(**tiny), 0, where, bfloat16, capture_steps=capture_steps,  # type: ignore[arg-type]
    )  # fmt: skip


class Silent:
    def on_phase_start(self, *_: object) -> None: ...

    def on_step(self, *_: object) -> None: ...

    def on_phase_end(self, *_: object) -> None: ...


def run(setup: Setup) -> State:
    return run_active_learning(setup, initial_state(setup), Silent())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_run_on_a_gpu(bfloat16: bool) -> None:
    state = run(make_setup(capture_steps=True, bfloat16=bfloat16))
    assert [row["labeled"] for row in state.history] == [80, 120, 160]
    assert len(set(state.pool.labeled.tolist())) == 160


def test_a_gpu_starts_from_the_same_world_as_a_cpu() -> None:
    cpu, gpu = (initial_state(make_setup(device)) for device in ("cpu", "cuda"))
    assert torch.equal(cpu.pool.labeled, gpu.pool.labeled)
    for ours, theirs in zip(cpu.backbone.parameters(), gpu.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs.cpu())


def losses(setup: Setup, steps: int) -> tuple[list[float], Tensor]:
    state = initial_state(setup)
    optimizer = joint_optimizer(setup, state)
    step = training_step(setup, state, optimizer, None)
    views = setup.augmentation.normalize(setup.dataset.train.data[:32])  # type: ignore[attr-defined]
    labels = setup.dataset.train_labels[:32].cuda()
    seen = []
    for k in range(steps):
        set_rates(optimizer, (0.01, 0.01) if k < steps // 2 else (0.001, 0.001))
        seen.append(step(JointInputs(views, labels, 32), k % 2 == 1).tolist()[0])
    return seen, next(state.backbone.parameters()).detach().clone()


def test_captured_steps_do_what_plain_steps_do() -> None:
    steps = 6 * WARM_UP
    plain, weights = losses(make_setup(capture_steps=False), steps)
    captured, captured_weights = losses(make_setup(capture_steps=True), steps)
    torch.testing.assert_close(captured, plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(captured_weights, weights, rtol=1e-2, atol=1e-3)


@pytest.fixture
def exact() -> Iterator[None]:
    """Makes the convolution library choose deterministic kernels."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("overlap", [False, True])
def test_copied_weights_are_those_of_autocast(exact: None, overlap: bool) -> None:
    """Bit for bit, with the gradients of weights and the levels of the module on streams of their own too."""
    setup = make_setup(capture_steps=True, bfloat16=True)
    _, plain = losses(setup, 6 * WARM_UP)
    acceleration = Acceleration(copied_weights=True, overlap=overlap)
    _, copied = losses(setup._replace(acceleration=acceleration), 6 * WARM_UP)
    assert torch.equal(plain, copied)


def test_a_replay_reads_nothing_of_what_is_left_of_the_last_one(exact: None) -> None:
    def weights(poison: bool) -> Tensor:
        setup = make_setup(capture_steps=True, bfloat16=True)._replace(acceleration=Acceleration(True, True, True))
        state = initial_state(setup)
        for _ in train(setup, state):
            for weight in (*state.backbone.parameters(), *state.module.parameters()):  # type: ignore[union-attr]
                if poison and weight.grad is not None:
                    weight.grad.fill_(torch.nan)
        return torch.cat([weight.detach().flatten() for weight in state.backbone.parameters()])

    assert torch.equal(weights(poison=True), weights(poison=False))


def test_fused_batch_norms_train_as_plain_ones_do(exact: None) -> None:
    setup = make_setup(capture_steps=True)
    plain, weights = losses(setup, 3 * WARM_UP)
    setup = setup._replace(acceleration=Acceleration(fused_norms=True))
    (fused, fused_weights), (again, weights_again) = losses(setup, 3 * WARM_UP), losses(setup, 3 * WARM_UP)
    torch.testing.assert_close(fused, plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(fused_weights, weights, rtol=1e-2, atol=1e-3)
    assert again == fused
    assert torch.equal(weights_again, fused_weights)


@pytest.mark.parametrize("channels", [3, 64, 70, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [False, True])
def test_a_fused_batch_norm_is_as_exact_as_a_plain_one(channels: int, dtype: torch.dtype, add: bool) -> None:
    exact, fused, plain = (
        norm_outcome(channels, dtype, add, *kind) for kind in ((False, True), (True, False), (False, False))
    )
    for ours, theirs, reference in zip(fused, plain, exact, strict=True):
        error, usual = ((values - reference).norm() / reference.norm() for values in (ours, theirs))
        assert error <= 2 * usual + 1e-6


def norm_outcome(channels: int, dtype: torch.dtype, add: bool, fused: bool, double: bool) -> list[Tensor]:
    """Returns output, gradients and running statistics of a batch norm with ReLU, in float64."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images, residual, gradient = (
        (3 + torch.randn(16, channels, 9, 9, generator=generator)).to("cuda", dtype, memory_format=torch.channels_last)
        for _ in range(3)
    )
    norm = torch.nn.BatchNorm2d(channels).cuda()
    torch.nn.init.normal_(norm.bias)
    norm.weight.data = torch.linspace(-1, 1, channels, device="cuda")
    if double:
        images, residual, gradient, norm = images.double(), residual.double(), gradient.double(), norm.double()
    inputs = [images.requires_grad_(), residual.requires_grad_(), norm.weight, norm.bias]
    inputs = inputs if add else [inputs[0], *inputs[2:]]
    with fused_batch_norms(fused):
        output = norm_relu(norm, images, residual if add else None)
    gradients = torch.autograd.grad(output, inputs, gradient)
    return [value.detach().double() for value in (output, *gradients, *norm.buffers())]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_convolution_with_relu_is_that_of_its_operations(bfloat16: bool, stride: int) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    conv = torch.nn.Conv2d(16, 32, 3, stride, 1).to("cuda", dtype, memory_format=torch.channels_last)
    images = torch.randn(8, 16, 9, 9).to("cuda", dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(images.double(), conv.weight.double(), conv.bias.double(), stride, 1)  # type: ignore[union-attr]
        residual = torch.randn_like(expected).to(dtype)
        fused = conv_relu(conv, images), conv_relu(conv, images, residual)
    for ours, exact in zip(fused, (expected.relu(), (expected + residual).relu()), strict=True):
        assert (ours - exact).norm() / exact.norm() < (4e-3 if bfloat16 else 2e-3)  # TF32


def test_a_captured_fine_tune_trains_the_module_as_plain_steps_do(exact: None) -> None:
    tuned = []
    for captured in (False, True):
        setup = make_setup(epochs=2, finetune_epochs=6)
        state = initial_state(setup)
        list(train(setup, state))
        state.enter("finetune")
        list(finetune(setup._replace(capture_steps=captured), state))
        assert state.module is not None
        tuned.append(weights_of(state.module))
    torch.testing.assert_close(*tuned, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("build", [resnet18, wide_resnet28_2])  # folded to bfloat16, and under autocast
def test_a_frozen_network_in_bfloat16_is_that_in_float32(build: Callable[..., torch.nn.Module]) -> None:
    torch.manual_seed(0)
    network = build(num_classes=4, in_channels=3).to("cuda", memory_format=torch.channels_last)
    images = torch.randn(40, 3, 32, 32, device="cuda")
    network.train()(images)  # moves the running statistics
    with torch.no_grad():
        exact, ours = (FrozenBackbone(network, bfloat16=bfloat16)(images) for bfloat16 in (False, True))
    for values, expected in zip((ours.logits, *ours.maps), (exact.logits, *exact.maps), strict=True):
        assert (values - expected).norm() / expected.norm() < 0.05


def checkpointed(state: State) -> dict[str, Any]:
    """Returns a state as loaded from a checkpoint: on the CPU."""
    buffer = io.BytesIO()
    torch.save(state.to_dict(), buffer)
    buffer.seek(0)
    saved: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=True)
    return saved


def trained(setup: Setup, killed_after: int | None = None) -> State:
    """Runs the first joint training; with a kill, saves after that many steps and resumes from there."""
    state = initial_state(setup)
    for step, _ in enumerate(train(setup, state), start=1):
        if step == killed_after:
            saved, state = checkpointed(state), empty_state(setup)
            state.load(saved)
            list(train(setup, state))
            break
    return state


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("killed_after", [7, 13])  # within an epoch of three steps: captured, before the decay or not
def test_a_resumed_training_is_that_of_an_uninterrupted_one(exact: None, dropout: float, killed_after: int) -> None:
    setup = make_setup(capture_steps=True, dropout=dropout, epochs=8, decay_at=(0.5,))
    whole, killed = trained(setup), trained(setup, killed_after)
    torch.testing.assert_close(killed.backbone.state_dict(), whole.backbone.state_dict(), rtol=1e-3, atol=1e-4)
    for group in killed.optimizer.param_groups:  # type: ignore[union-attr]
        assert group["lr"].is_cuda


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Sets torch as runtime.deterministic=true does."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("killed_after", [4, 8, 13])
def test_a_deterministic_run_resumes_bit_for_bit(deterministic: None, accelerated: bool, killed_after: int) -> None:
    setup = make_setup(bfloat16=True, dropout=0.3, epochs=6, decay_at=(0.5,))
    if accelerated:
        setup = setup._replace(acceleration=Acceleration(True, True, True))
    whole, killed = trained(setup), trained(setup, killed_after)
    for name, values in whole.backbone.state_dict().items():
        assert torch.equal(values, killed.backbone.state_dict()[name]), name


def drawn_masks(setup: Setup) -> Tensor:
    """Returns the dropout masks of some steps, captured if the setup captures steps; passes the turn on after each."""
    state, masks = initial_state(setup), []

    def step(inputs: Sequence[Tensor], _kind: bool = False) -> Tensor:
        return torch.nn.functional.dropout(inputs[0])

    steps = CapturedSteps(step, pytest.fail) if setup.capture_steps else step
    views, labels = torch.ones(1000, device="cuda"), torch.zeros(1, device="cuda")
    for state.step in range(3 * WARM_UP):
        with mask_draws(setup, state):
            masks.append(steps((views, labels)).clone())
        setup.turns.pass_on()
    return torch.stack(masks).cpu()


def test_captured_steps_draw_the_masks_of_plain_steps() -> None:
    plain = drawn_masks(make_setup(capture_steps=False))
    assert torch.equal(drawn_masks(make_setup(capture_steps=True)), plain)
    assert len(plain.unique(dim=0)) == 3 * WARM_UP


def interleaved(work: Callable[[Setup], T], *setups: Setup) -> list[T]:
    """Calls a function with several setups in threads that take turns, each on a stream of its own."""
    torch.cuda.synchronize()  # the images were placed on the default stream
    runs = InterleavedRuns({}, Turns(len(setups)))

    def in_turn(setup: Setup) -> T:
        with runs.turns.joined(), runs.own_stream("cuda"):
            return work(setup.with_turns(runs.turns))

    with ThreadPoolExecutor(len(setups)) as threads:
        return list(threads.map(in_turn, setups))


def test_interleaved_runs_draw_their_own_masks() -> None:
    setups = [make_setup(capture_steps=True)._replace(seed=seed) for seed in range(3)]
    single = [drawn_masks(setup) for setup in setups]
    for alone, in_turn in zip(single, interleaved(drawn_masks, *setups), strict=True):
        assert torch.equal(in_turn, alone)
    assert not torch.equal(single[0], single[1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interleaved_trainings_are_those_of_single_ones(exact: None, dropout: float) -> None:
    setups = [make_setup(capture_steps=True, dropout=dropout, epochs=8)._replace(seed=seed) for seed in range(3)]

    def weights(setup: Setup) -> dict[str, Tensor]:
        state = initial_state(setup)
        for _ in train(setup, state):
            setup.turns.pass_on()
        return {name: value.cpu() for name, value in state.backbone.state_dict().items()}

    single = [weights(setup) for setup in setups]
    for alone, in_turn in zip(single, interleaved(weights, *setups), strict=True):
        torch.testing.assert_close(in_turn, alone, rtol=1e-3, atol=1e-4)


def test_whole_runs_interleave() -> None:
    setups = [make_setup(capture_steps=True, bfloat16=True)._replace(seed=seed) for seed in range(3)]
    for state in interleaved(run, *setups):
        assert [row["labeled"] for row in state.history] == [80, 120, 160]
        assert len(set(state.pool.labeled.tolist())) == 160


def test_an_interleaved_run_whose_steps_cannot_be_captured_goes_on(exact: None) -> None:
    lines: list[str] = []
    usual = make_setup(capture_steps=True, epochs=2 * WARM_UP)
    waiting = usual._replace(build=partial(waiting_build, usual), announce=lines.append)
    alone = run(waiting._replace(capture_steps=False))
    fallen, other = interleaved(run, waiting, usual)
    assert len(lines) == 1
    assert fallen.uncapturable
    assert [row["labeled"] for row in other.history] == [80, 120, 160]
    first = [state.history[0]["test_accuracy"] for state in (alone, fallen)]
    assert first[0] == pytest.approx(first[1], abs=0.05)


class Waiting(torch.nn.Module):
    """A backbone with dropout that synchronizes with the GPU, so that it cannot be captured."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.channels, self.head = network, network.channels, network.head

    def forward(self, images: Tensor) -> Features:
        assert images.sum().isfinite().item()
        features: Features = self.network(torch.nn.functional.dropout(images, 0.1, self.training))
        return features


def waiting_build(setup: Setup, cycle: int) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """Builds networks whose backbone synchronizes with the GPU."""
    backbone, module = setup.build(cycle)
    return Waiting(backbone), module


def test_a_backbone_that_cannot_be_captured_trains_as_usual(exact: None) -> None:
    def outcome(capture_steps: bool) -> tuple[State, list[str]]:
        lines: list[str] = []
        setup = make_setup(capture_steps=capture_steps, epochs=2 * WARM_UP)
        stream = torch.cuda.current_stream()
        state = run(setup._replace(build=partial(waiting_build, setup), announce=lines.append))
        assert torch.cuda.current_stream() == stream
        return state, lines

    usual, nothing = outcome(capture_steps=False)
    fallen, lines = outcome(capture_steps=True)
    assert (nothing, len(lines)) == ([], 1)
    assert "cannot be CUDA graphs" in lines[0]
    first, second = (state.history[0]["test_accuracy"] for state in (usual, fallen))
    assert abs(first - second) < 0.05


def test_an_epoch_never_waits_for_the_device() -> None:
    setup = make_setup(capture_steps=True, epochs=2 * WARM_UP, detach_after=1.0)
    state = initial_state(setup)
    steps = train(setup, state)
    for _ in steps:
        if state.epoch == 2 * WARM_UP - 1:  # everything is captured by now
            break
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while state.step < 2:
            step = next(steps)
            assert step.metrics is None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_images_stream_to_a_gpu() -> None:
    data = digits("data").train
    streamed = StreamedImages(data.data.__getitem__, len(data), data.shape, "cuda", workers=2)
    indices = [torch.tensor([3, 1]), torch.tensor([7])]
    for ours, theirs in zip(streamed.batches(indices), data.batches(indices), strict=True):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), theirs)
