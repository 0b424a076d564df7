"""A fine-tune that diverges ends there with a clear error, and is never saved or resumed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Result, run_folder
from test_ssl import finished, make_setup, trained
from torch import Tensor, nn

from sslpl.learn.divergence import LIMIT, check_losses
from sslpl.learn.sums import FinetuneSums, JointSums
from sslpl.phases import finetune as module
from sslpl.recording import checkpoint
from sslpl.state import State

# ResNet-18 after nine steps: batch norm's running averages lag, and its features in eval mode are thousands of times
# as large as in training.
SHORT = (
    "backbone=resnet18", "ssl=none", "budget.initial=96", "budget.per_cycle=24", "budget.cycles=2",
    "budget.candidates=100", "training.batch_size=32", "training.epochs=3", "training.finetune_epochs=1",
    "training.precision=float32", "tracker=none", "runtime.num_threads=1", "runtime.progress=none",
)  # fmt: skip


def test_a_fine_tune_that_diverges_ends_the_run_in_its_phase(sslpl: Callable[..., Result]) -> None:
    done = sslpl(*SHORT, "runtime.checkpoint_minutes=0")
    assert (done.code, done.err.count("\n")) == (1, 1)
    for part in ("fine-tune", "running averages", "training.precise_batch_norm=true", "training.finetune_rate",
                 "training.finetune_clip", "training.epochs"):  # fmt: skip
        assert part in done.err
    assert "training.rate" not in done.err
    status = json.loads((run_folder() / "status.json").read_text())
    assert (status["state"], status["cycle"], status["phase"]) == ("failed", 0, "finetune")
    assert status["error"] in done.err
    assert not (run_folder() / "metrics.csv").exists()
    saved, warning = checkpoint.load(run_folder() / "checkpoint")
    assert (saved is not None, warning) == (True, None)
    assert torch.isfinite(torch.stack([value.norm() for value in saved["module"].values()])).all()
    assert saved["sums"] is None or float(saved["sums"][0]) < LIMIT


def test_estimated_statistics_keep_that_fine_tune_stable(sslpl: Callable[..., Result]) -> None:
    done = sslpl(*SHORT, "training.precise_batch_norm=true")
    assert done.code == 0, done.err


def test_a_diverging_fine_tune_ends_after_its_first_step() -> None:
    setup = make_setup(None, finetune_epochs=3)
    state = inflated(trained(setup))
    with pytest.raises(FloatingPointError, match=r"epoch 1 .*precise_batch_norm=true.*finetune_clip"):
        finished(setup, state)
    assert state.epoch == 0
    assert state.step < len(state.train_index) / setup.training.batch_size


def inflated(state: State) -> State:
    """Shrinks the running variances, as if they lagged far behind."""
    for part in state.backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.mul_(1e-6)
    return state


@pytest.mark.parametrize("epochs", [1, 3])
def test_lagging_running_averages_end_the_first_epoch_of_the_fine_tune(epochs: int) -> None:
    setup = make_setup(None, finetune_epochs=epochs)
    state = inflated(trained(setup))
    with pytest.raises(FloatingPointError, match=r"fine-tune diverged in epoch 1 .*training\.finetune_rate"):
        finished(setup, state)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e12])
def test_what_the_last_step_breaks_is_noticed_though_no_loss_has_seen_it(
    monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    setup = make_setup(None, finetune_epochs=1)
    state = trained(setup)

    def breaking(*arguments: Any) -> Tensor:
        sums = module_step(*arguments)
        with torch.no_grad():
            state.module.head.bias.fill_(broken)  # type: ignore[union-attr]
        return sums

    module_step = module.finetune_step
    steps = len(state.train_index) // setup.training.batch_size
    calls = iter(range(steps))
    monkeypatch.setattr(module, "finetune_step", lambda *a: (breaking if next(calls) == steps - 1 else module_step)(*a))
    with pytest.raises(FloatingPointError, match="fine-tune diverged"):
        finished(setup, state)


@pytest.mark.parametrize("phase", ["train", "finetune"])
@pytest.mark.parametrize(("loss", "refused"), [(torch.nan, True), (torch.inf, True), (1e3, False)])
def test_a_state_whose_losses_are_not_finite_is_not_fit_to_be_saved(phase: str, loss: float, refused: bool) -> None:
    setup = make_setup(None)
    state = trained(setup)
    state.enter(phase)
    fields = JointSums._fields if phase == "train" else FinetuneSums._fields
    state.sums = torch.tensor([loss, *[1.0] * (len(fields) - 1)])
    if refused:
        with pytest.raises(FloatingPointError):
            check_losses(state)
    else:
        check_losses(state)


def test_a_healthy_fine_tune_is_left_alone() -> None:
    setup = make_setup(None)
    state = finished(setup, trained(setup))
    check_losses(state)
    assert state.epoch == setup.training.finetune_epochs
