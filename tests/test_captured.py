"""Captured steps, tested on a CPU: tensors that a graph reads keep their memory, and uncapturable steps run eagerly."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY, Result
from hydra.utils import instantiate
from test_identity import config_of
from torch import Tensor, nn

from sslpl.config.build import build_setup
from sslpl.learn.cuda_graphs import WARM_UP, Captured, CapturedSteps, first_line
from sslpl.learn.optimizers import resume_optimizer, set_rates
from sslpl.learn.sums import EPOCH_SUMS, JointSums
from sslpl.loop import empty_state, initial_state, run_active_learning
from sslpl.models.backbone import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.phases.finetune import finetune
from sslpl.phases.train import train
from sslpl.pretrain.simclr import SimCLR, initial_pretrain_state, projection_head
from sslpl.run import launch
from sslpl.setup import Setup
from sslpl.state import State, weights_of

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch


def setup_of(*overrides: str) -> Setup:
    config = config_of(*TINY, *overrides)[0]
    return build_setup(config, instantiate(config["runtime"]))


def optimizer_of(network: nn.Module, *rates: Tensor | float) -> torch.optim.SGD:
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(network.parameters(), rates, strict=False)]
    return torch.optim.SGD(groups, momentum=0.9)


def saved_state(*rates: float) -> dict[str, Any]:
    """Returns the state of an optimizer after a step as in a checkpoint: on the CPU."""
    network = nn.Linear(3, 2)
    optimizer = optimizer_of(network, *map(torch.tensor, rates))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return copy.deepcopy(optimizer.state_dict())


def test_a_resumed_optimizer_keeps_the_tensors_of_its_rates(state: State) -> None:
    rates = torch.zeros(()), torch.zeros(())
    optimizer = optimizer_of(nn.Linear(3, 2), *rates)
    state.optimizer_state = saved_state(0.5, 0.25)
    resume_optimizer(optimizer, state)
    assert [group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True)] == [True, True]
    assert [float(rate) for rate in rates] == [0.5, 0.25]
    assert all("momentum_buffer" in optimizer.state[group["params"][0]] for group in optimizer.param_groups)
    set_rates(optimizer, (0.05, 0.025))  # the decay reaches what a captured step reads
    assert [float(rate) for rate in rates] == [float(torch.tensor(0.05)), float(torch.tensor(0.025))]


def test_a_resumed_optimizer_keeps_the_device_of_its_rates(state: State) -> None:
    elsewhere = torch.zeros((), device="meta")  # as a GPU is elsewhere
    optimizer = optimizer_of(nn.Linear(3, 2), elsewhere)
    state.optimizer_state = saved_state(0.5)
    resume_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["lr"] is elsewhere


def test_rates_of_a_gpu_are_numbers_on_a_cpu(state: State) -> None:
    optimizer = optimizer_of(nn.Linear(3, 2), 0.0)
    state.optimizer_state = saved_state(0.5)
    resume_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_so_does_a_resumed_pre_training() -> None:
    def fresh() -> Any:
        network = small_cnn(num_classes=2, in_channels=1)
        made = initial_pretrain_state(network, projection_head(256, 8), SimCLR(), torch.device("cpu"))
        made.optimizer.param_groups[0]["lr"] = torch.zeros(())
        return made

    first, second = fresh(), fresh()
    set_rates(first.optimizer, (0.5,))
    rate = second.optimizer.param_groups[0]["lr"]
    second.load(copy.deepcopy(first.to_dict()))
    assert second.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


@pytest.fixture
def state() -> State:
    return empty_state(setup_of())


def refuse(*_: Any) -> Any:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


@pytest.fixture
def capturing(monkeypatch: Patch) -> Patch:
    """Simulates the capture of steps on a CPU: each replay runs the captured function again."""

    class Graph:
        def __init__(self, replay: Callable[[], Any]) -> None:
            self.replay = replay

    def capture(self: CapturedSteps, inputs: list[Tensor], kind: bool) -> Captured:
        sums = torch.zeros(len(JointSums._fields) if len(inputs) == 2 else EPOCH_SUMS)
        return Captured(Graph(lambda: sums.copy_(self.step(inputs, kind))), inputs, sums)  # type: ignore[arg-type]

    monkeypatch.setattr(CapturedSteps, "_run_eagerly", lambda self, *inputs: self.step(*inputs))
    monkeypatch.setattr(CapturedSteps, "_capture", capture)
    return monkeypatch


class Silent:
    def on_phase_start(self, *_: object) -> None: ...

    def on_step(self, *_: object) -> None: ...

    def on_phase_end(self, *_: object) -> None: ...


def outcome(capture_steps: bool, *overrides: str) -> tuple[State, list[str]]:
    """Runs all cycles; returns the final state and the printed messages."""
    lines: list[str] = []
    setup = setup_of("training.epochs=4", "backbone.dropout=0.3", *overrides)
    setup = setup._replace(capture_steps=capture_steps, announce=lines.append)
    return run_active_learning(setup, initial_state(setup), Silent()), lines


def assert_same(left: State, right: State) -> None:
    torch.testing.assert_close(left.backbone.state_dict(), right.backbone.state_dict(), rtol=0, atol=0)
    assert left.pool.order.tolist() == right.pool.order.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("training.warm_start=false",)])
def test_a_backbone_that_cannot_be_captured_trains_as_usual(capturing: Patch, overrides: tuple[str, ...]) -> None:
    usual, nothing = outcome(False, *overrides)
    replayed, silence = outcome(True, *overrides)
    capturing.setattr(CapturedSteps, "_capture", refuse)
    fallen, lines = outcome(True, *overrides)
    assert (nothing, silence) == ([], [])
    assert lines == [
        "training steps cannot be CUDA graphs (CUDA error: operation not permitted when stream is capturing): they "
        "run eagerly, which is slower"
    ]
    # The fine-tune of captured steps pads pairs, whose losses are rounded differently: until then all is equal.
    for key in ("labeled", "test_accuracy", "test_nll"):
        assert replayed.history[0][key] == usual.history[0][key]
    assert [row["labeled"] for row in replayed.history] == [row["labeled"] for row in usual.history]
    assert_same(fallen, usual)


@pytest.mark.usefixtures("capturing")
def test_a_captured_fine_tune_trains_the_module_as_plain_steps_do() -> None:
    tuned = []
    for capture_steps in (False, True):
        setup = setup_of("training.epochs=4", "training.finetune_epochs=5", "ssl.threshold=0.1")
        setup = setup._replace(capture_steps=capture_steps, announce=pytest.fail)
        state = initial_state(setup)
        list(train(setup, state))
        state.enter("finetune")
        assert state.module is not None
        before = weights_of(state.module)
        list(finetune(setup, state))
        assert state.row["pseudo_label_rate"]
        assert not torch.equal(before["head.weight"], state.module.state_dict()["head.weight"])
        tuned.append(weights_of(state.module))
    torch.testing.assert_close(*tuned, rtol=1e-4, atol=1e-5)  # padded pairs are summed in another order


def test_the_line_is_printed_with_the_others_of_a_run(sslpl: Command, capturing: Patch) -> None:
    capturing.setattr(CapturedSteps, "_capture", refuse)
    capturing.setattr(launch, "build_setup", lambda *given: build_setup(*given)._replace(capture_steps=True))
    done = sslpl(*TINY, "training.epochs=4", "runtime.progress=plain")
    assert done.code == 0, done.err
    assert done.out.count("cannot be CUDA graphs") == 1


def test_a_layer_that_draws_on_the_cpu_is_no_graph(capturing: Patch) -> None:
    lines: list[str] = []
    steps = CapturedSteps(lambda inputs, _: torch.rand(4) + inputs[0].sum(), lines.append)

    def drawing(*_: Any) -> Any:
        torch.rand(4)

    capturing.setattr(CapturedSteps, "_capture", drawing)
    views, labels = torch.zeros(2, 1), torch.zeros(2)
    torch.manual_seed(0)
    expected = [torch.rand(4) for _ in range(WARM_UP + 2)]
    torch.manual_seed(0)
    monitored = [steps((views, labels)) for _ in expected]
    torch.testing.assert_close(monitored, expected, rtol=0, atol=0)
    assert len(lines) == 1
    assert "random numbers on the CPU" in lines[0]


def test_a_real_error_of_a_step_is_raised(capturing: Patch) -> None:
    calls = []

    def broken(*_: Any) -> Tensor:
        calls.append(1)
        if len(calls) > WARM_UP:
            raise ValueError("broken")
        return torch.zeros(4)

    capturing.setattr(CapturedSteps, "_capture", lambda self, *inputs: self.step(*inputs))
    steps = CapturedSteps(broken, lambda _: None)
    for _ in range(WARM_UP):
        steps((torch.zeros(2), torch.zeros(2)))
    with pytest.raises(ValueError, match="broken"):
        steps((torch.zeros(2), torch.zeros(2)))


def test_the_reason_is_the_first_of_chained_errors() -> None:
    last = RuntimeError("operation failed due to a previous error during capture")
    last.__context__ = ValueError("item() in a capture\nand more")
    assert first_line(last) == "item() in a capture"
    assert first_line(KeyError()) == "KeyError"


def test_what_a_graph_reads_of_the_module_lives_as_long_as_the_module() -> None:
    module = LossPredictionModule((3, 5), width=4)
    module([torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)])
    (matrix,) = module.levels[0].tap_matrices.values()  # type: ignore[union-attr, operator]
    others = LossPredictionModule((3, 5), width=4)
    for side in range(2, 100):  # more sizes than any cache would keep
        others([torch.randn(1, 3, side, 2), torch.randn(1, 5, 2, 2)])
    read = weakref.ref(matrix)
    del matrix
    gc.collect()
    module([torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)])
    (again,) = module.levels[0].tap_matrices.values()  # type: ignore[union-attr, operator]
    assert read() is again
    assert "tap_matrices" not in "".join(module.state_dict())
