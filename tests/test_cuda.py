"""On a GPU: the same draws, captured steps that do what plain steps do, no waiting inside an epoch."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sslpl.cycle import initial_state, run_active_learning
from sslpl.data.augment import Augmentation
from sslpl.data.datasets import digits
from sslpl.data.images import StreamedImages
from sslpl.learn import ranking, ssl
from sslpl.learn.capture import WARM_UP
from sslpl.learn.joint import Inputs, stepper, train
from sslpl.learn.optimizers import joint_optimizer, set_rates
from sslpl.models.backbones import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.pool import Budget
from sslpl.query.scorers import predicted_loss
from sslpl.query.selectors import selective_clustering
from sslpl.query.strategies import score_then_select
from sslpl.seeds import seeded
from sslpl.setup import Setup, Training
from sslpl.state import State

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_setup(device: str = "cuda", captures: bool = False, bfloat16: bool = False, **training: object) -> Setup:
    data = digits("data")
    data = data._replace(train=data.train.to(device), test=data.test.to(device))
    shape, where = data.train.shape, torch.device(device)
    augmentation = Augmentation(
        shape, data.mean, data.std, flip=data.flip, padding=data.padding, cutout=data.cutout, device=where
    )

    def build(cycle: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        backbone = seeded(lambda: small_cnn(num_classes=10, in_channels=1), 0, f"backbone {cycle}")
        module = seeded(lambda: LossPredictionModule(backbone.channels), 0, f"module {cycle}")
        return backbone.to(where, memory_format=torch.channels_last), module.to(where)

    query = partial(score_then_select, scorer=predicted_loss, selector=selective_clustering)
    tiny = {"epochs": 3, "finetune_epochs": 2, "batch_size": 32} | training
    return Setup(
        data, build, augmentation, ranking.bce, ssl.pseudo_label_soft, query, Budget(80, 40, 3, 300),
        Training(**tiny), 0, where, bfloat16, captures=captures,  # type: ignore[arg-type]
    )  # fmt: skip


class Silent:
    def phase(self, *_: object) -> None: ...

    def step(self, *_: object) -> None: ...

    def border(self, *_: object) -> None: ...


def run(setup: Setup) -> State:
    return run_active_learning(setup, initial_state(setup), Silent())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_run_on_a_gpu(bfloat16: bool) -> None:
    state = run(make_setup(captures=True, bfloat16=bfloat16))
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
    step = stepper(setup, state, optimizer, None)
    views = setup.augmentation.plain(setup.dataset.train.data[:32])  # type: ignore[attr-defined]
    labels = setup.dataset.train_labels[:32].cuda()
    seen = []
    for k in range(steps):
        set_rates(optimizer, (0.01, 0.01) if k < steps // 2 else (0.001, 0.001))
        seen.append(step(Inputs(views, labels, 32), k % 2 == 1).tolist()[0])
    return seen, next(state.backbone.parameters()).detach().clone()


def test_captured_steps_do_what_plain_steps_do() -> None:
    steps = 6 * WARM_UP
    plain, weights = losses(make_setup(captures=False), steps)
    captured, captured_weights = losses(make_setup(captures=True), steps)
    torch.testing.assert_close(captured, plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(captured_weights, weights, rtol=1e-2, atol=1e-3)


def test_an_epoch_never_waits_for_the_device() -> None:
    setup = make_setup(captures=True, epochs=2 * WARM_UP, detach_after=1.0)
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
