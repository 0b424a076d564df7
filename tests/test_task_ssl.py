"""Semi-supervised training of the backbone: the published formulas, and the joint training."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_ssl import make_setup, reloaded
from torch import Tensor

from sslpl.learn.averages import update_average, use_average
from sslpl.learn.inference import predict
from sslpl.learn.joint_step import JointInputs, joint_step
from sslpl.learn.optimizers import joint_optimizer, set_rates
from sslpl.learn.unlabeled_batches import start_task, unlabeled_batches, unlabeled_order
from sslpl.loop import advance, initial_state, prepare_training
from sslpl.models.backbone import small_cnn
from sslpl.phases.evaluate import evaluate
from sslpl.phases.label import add_labels
from sslpl.phases.train import train
from sslpl.recording import checkpoint
from sslpl.run.errors import CONF
from sslpl.setup import Setup
from sslpl.ssl.backbone_loss import TaskCriterion, TaskSSL
from sslpl.ssl.rules import pseudo_label_hard, pseudo_label_soft
from sslpl.ssl.task_method import Outputs, TaskMethod, TaskOutputs
from sslpl.state import State, weights_of
from sslpl.types import Selection

Command = Callable[..., Result]
METHODS = sorted(path.stem for path in (CONF / "task_ssl").glob("*.yaml") if path.stem != "none")
with np.load(Path(__file__).parent / "data" / "task_ssl" / "reference.npz") as file:
    REFERENCE = {key: torch.from_numpy(file[key]) for key in file.files}


NEW = ("adamatch", "comatch", "dash", "remixmatch", "simmatch")  # read the labeled batch: test_task_methods.py
RULES = [option for option in METHODS if option not in NEW]


def outputs_of(weak: Tensor, student: Tensor, index: Tensor) -> TaskOutputs:
    return TaskOutputs((Outputs(weak), Outputs(student)), index)


def method_of(option: str, **changed: object) -> Any:
    """Builds an option of conf/task_ssl with other values."""
    node = OmegaConf.load(CONF / "task_ssl" / f"{option}.yaml")
    for key, value in changed.items():
        OmegaConf.update(node, key.replace("__", "."), value)
    method = instantiate(node)
    assert isinstance(method, TaskMethod)
    return method


@pytest.mark.parametrize(
    ("case", "option", "changed"),
    [
        ("fixmatch", "fixmatch", {}),
        ("fixmatch_uniform", "fixmatch", {"align": "uniform", "momentum": 0.7}),
        ("fixmatch_labeled", "fixmatch", {"align": "labeled", "momentum": 0.7}),
        ("flexmatch", "flexmatch", {}),
        ("freematch", "freematch", {"rule__momentum": 0.7, "momentum": 0.7}),
        ("softmatch", "softmatch", {"rule__momentum": 0.7}),
        ("pseudo_label", "pseudo_label", {}),
        ("uda", "uda", {}),
        ("uda_shipped", "uda", {"rule__temperature": 1.0}),
        ("mean_teacher", "mean_teacher", {}),
    ],
)
def test_losses_and_weights_are_those_of_the_published_code(case: str, option: str, changed: dict[str, object]) -> None:
    method = method_of(option, **changed)
    criterion = TaskCriterion(method, REFERENCE["frequency"], num_images=28)
    learned = REFERENCE["weak"] if method.view == "same" else REFERENCE["strong"]
    weights = REFERENCE[f"{case}_weight"]
    for k, (weak, logits, index) in enumerate(zip(REFERENCE["weak"], learned, REFERENCE["index"], strict=True)):
        loss = criterion(outputs_of(weak, logits, index))
        torch.testing.assert_close(loss.weight, weights[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.target, REFERENCE[f"{case}_target"][k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.pseudo, REFERENCE[f"{case}_loss"][k], rtol=1e-4, atol=1e-5)
        if method.fairness:
            torch.testing.assert_close(
                loss.auxiliary / method.fairness, REFERENCE[f"{case}_fairness"][k], rtol=1e-4, atol=1e-5
            )
    assert (weights.min() < 1) == (case != "mean_teacher")


def test_the_values_are_the_published_ones() -> None:
    methods = {option: method_of(option) for option in RULES}
    usual = dict.fromkeys(RULES, (7, 1.0, 0.0, "strong", False, 0.0))
    usual["freematch"] = (*usual["freematch"][:5], 0.001)
    usual |= {"pseudo_label": (1, 1.0, 0.4, "same", False, 0.0), "mean_teacher": (1, 50.0, 0.4, "weak", True, 0.0)}
    for option, m in methods.items():
        assert (m.ratio, m.weight, m.ramp_up, m.view, m.teacher, m.fairness) == usual[option]
        assert (m.average, m.align, m.momentum) == (0.999, "none", 0.999)


def test_the_fairness_loss_of_no_image_is_zero_and_moves_nothing() -> None:
    method = method_of("freematch")
    criterion = TaskCriterion(TaskSSL(lambda w: pseudo_label_soft(w, 1.0), fairness=1.0), torch.ones(3) / 3, 4)
    assert method.fairness > 0
    strong = torch.randn(4, 3, requires_grad=True)
    loss = criterion(outputs_of(torch.zeros(4, 3), strong, torch.arange(4)))
    (loss.pseudo + loss.auxiliary).backward()
    assert (loss.pseudo.item(), loss.auxiliary.item()) == (0, 0)
    assert strong.grad is not None
    assert not strong.grad.any()


def test_no_gradient_reaches_the_weak_view() -> None:
    for option in RULES:
        weak, strong = (torch.randn(6, 3, requires_grad=True) for _ in range(2))
        method = method_of(option, weight=1.0)
        loss = TaskCriterion(method, torch.ones(3) / 3, 6)(outputs_of(3 * weak, strong, torch.arange(6)))
        (loss.pseudo + loss.auxiliary).backward()
        assert weak.grad is None


def test_the_weight_grows_linearly() -> None:
    method = TaskSSL(pseudo_label_hard, weight=2.0, ramp_up=0.4)
    assert [method.weight_at(step, 10) for step in (0, 1, 2, 4, 9)] == [0, 0.5, 1.0, 2.0, 2.0]
    assert TaskSSL(pseudo_label_hard, weight=3.0).weight_at(0, 10) == 3.0


def test_averaged_weights_by_hand() -> None:
    torch.manual_seed(0)
    network, average = (small_cnn(num_classes=3, in_channels=1) for _ in range(2))
    expected = average.head.weight.clone()
    for steps in range(1, 9):
        network.head.weight.data.normal_()
        update_average(average, network, 0.4, steps)
        keep = min(0.4, (1 + steps) / (10 + steps))
        expected = keep * expected + (1 - keep) * network.head.weight
        torch.testing.assert_close(average.head.weight, expected)


LOW = {"rule__threshold": 0.14, "ratio": 2}


def prepared(method: TaskMethod | None, **training: object) -> Setup:
    return make_setup(pseudo_label_soft, **training)._replace(task_ssl=method)


def trained(setup: Setup, state: State) -> list[dict[str, float]]:
    return [step.metrics for step in train(setup, state) if step.metrics]


def test_every_unlabeled_image_is_seen_once_before_any_is_seen_again() -> None:
    setup = prepared(method_of("fixmatch"))
    state = initial_state(setup)
    task, unlabeled = start_task(setup, state), state.pool.unlabeled
    assert task is not None
    size, each = 7 * 16, len(unlabeled) // (7 * 16)
    order = [batch for epoch in range(2 * each) for batch in unlabeled_order(setup, task, len(unlabeled), epoch, 3)]
    assert [len(batch) for batch in order] == [size] * (6 * each)
    for turn in range(6):
        seen = Counter(torch.cat(order[turn * each : (turn + 1) * each]).tolist())
        assert len(seen) == each * size
        assert set(seen.values()) == {1}
        assert set(seen) <= set(unlabeled.tolist())
    assert unlabeled_order(setup, task, 0, 0, 3) == []


@pytest.mark.parametrize("option", ["fixmatch", "pseudo_label", "mean_teacher"])
def test_the_loss_of_a_step_is_that_of_the_views_passed_together(option: str) -> None:
    setup = prepared(method_of(option, ratio=2, weight=3.0, ramp_up=0.0))
    setup = setup._replace(build=lambda cycle: (prepared(None).build(cycle)[0], None))
    state = initial_state(setup)
    task = start_task(setup, state)
    assert task is not None
    batch = next(unlabeled_batches(setup, state, task, 0, 4))
    assert batch is not None
    own = batch.views[1:] if option == "mean_teacher" else batch.views
    assert len(batch.views) == (1 if option == "pseudo_label" else 2)
    images = next(setup.dataset.train.batches([state.train_index[:16]]))
    views, labels = setup.augmentation.normalize(images), state.labels()[state.train_index[:16]]
    network = setup.build(0)[0].train()
    logits = network(torch.cat([views, *own])).logits
    weak = setup.build(0)[0].train()(batch.views[0]).logits if option == "mean_teacher" else logits[16:48]
    target = weak.detach().softmax(dim=1)
    if option == "mean_teacher":
        term = ((logits[-32:].softmax(dim=1) - target) ** 2).mean()
    else:
        kept = (target.amax(dim=1) >= 0.95).float()
        term = -(kept * logits[-32:].log_softmax(dim=1).gather(1, target.argmax(dim=1, keepdim=True))[:, 0]).mean()
    loss = torch.nn.functional.cross_entropy(logits[:16], labels) + 3.0 * term
    loss.backward()
    before, optimizer = weights_of(task.average), joint_optimizer(setup, state)
    set_rates(optimizer, (0.1,))
    sums = joint_step(setup, state, optimizer, JointInputs(views, labels, 16, batch, torch.arange(16)), False, task)
    torch.testing.assert_close(sums[4] / 32, term.detach())
    assert all(torch.equal(value, before[name]) for name, value in task.average.state_dict().items() if "run" in name)
    for ours, theirs in zip(state.backbone.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_unlabeled_images_the_term_is_zero_and_training_is_the_usual_one() -> None:
    setups = [prepared(method) for method in (None, method_of("freematch"))]
    states = [initial_state(setup) for setup in setups]
    plain = states[0]
    for setup, state in zip(setups, states, strict=True):
        rest = state.pool.unlabeled
        picked = Selection(rest, torch.zeros(len(rest), dtype=torch.float64))
        add_labels(setup, state, picked, setup.dataset.train_labels[rest], cycle=0)
        state.excluded = rest
        metrics = trained(setup, state)
        assert not any("unlabeled" in key for values in metrics for key in values)
    raw = states[1].unaveraged_weights
    assert raw is not None
    assert all(torch.equal(raw[name], value) for name, value in plain.backbone.state_dict().items())


def test_averaged_weights_are_tested_and_raw_ones_trained_on() -> None:
    setup = prepared(method_of("fixmatch", **LOW, average=0.9))
    state = initial_state(setup)
    steps = train(setup, state)
    for _ in range(8):  # two epochs of four steps
        next(steps)
    raw, average = weights_of(state.backbone), {name: value.clone() for name, value in (state.average or {}).items()}
    assert list(steps) == []
    assert state.average is None
    assert state.unaveraged_weights is not None
    assert not torch.equal(raw["head.weight"], average["head.weight"])
    advance(setup, state)
    assert state.phase == "finetune"
    advance(setup, state)
    list(evaluate(setup, state))
    averaged = small_cnn(num_classes=10, in_channels=1)
    averaged.load_state_dict(average)
    data = setup.dataset
    said = predict(setup, averaged, None, data.test, torch.arange(len(data.test)))
    assert state.row["test_accuracy"] == (said.logits.argmax(dim=1) == data.test_labels).double().mean().item()
    prepare_training(setup, state)
    assert state.unaveraged_weights is None
    assert all(torch.equal(raw[name], value) for name, value in state.backbone.state_dict().items())


def test_the_best_checkpoint_is_chosen_by_averaged_weights_and_keeps_both() -> None:
    setup = prepared(method_of("fixmatch", **LOW, average=0.5), checkpoint="best", epochs=4)
    state = initial_state(setup)
    state.held_out = state.train_index[:24]
    seen: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]] = []
    for step in train(setup, state):
        if step.metrics:
            assert state.average is not None
            average = {name: value.clone() for name, value in state.average.items()}
            seen.append((step.metrics["train/validation_accuracy"], weights_of(state.backbone), average))
    highest = max(accuracy for accuracy, _, _ in seen)
    _, raw, average = [entry for entry in seen if entry[0] == highest][-1]
    assert state.unaveraged_weights is not None
    assert all(torch.equal(average[name], value) for name, value in state.backbone.state_dict().items())
    assert all(torch.equal(raw[name], value) for name, value in state.unaveraged_weights.items())


STATES = {  # options of each method with a state, so that it changes within a few steps
    "flexmatch": {"rule__threshold": 0.14, "momentum": 0.6, "align": "uniform"},
    "freematch": {"rule__momentum": 0.6, "momentum": 0.6, "align": "uniform"},
    "softmatch": {"rule__momentum": 0.6, "momentum": 0.6, "align": "uniform"},
    "mean_teacher": {"momentum": 0.6, "align": "uniform"},
    "adamatch": {"momentum": 0.6},
    "comatch": {"threshold": 0.14, "memory": 2},
    "dash": {"decay_every": 0.1, "warm_up": 0.2},
    "remixmatch": {"momentum": 0.6},
    "simmatch": {"threshold": 0.14, "align_batches": 3},
}


@pytest.mark.parametrize("option", STATES)
def test_any_step_can_be_gone_on_from(option: str) -> None:
    setup = prepared(method_of(option, **STATES[option], ratio=2, average=0.6))
    whole = initial_state(setup)
    expected = trained(setup, whole)
    for kill_after in (3, 8):
        state = initial_state(setup)
        for k, _ in enumerate(train(setup, state), start=1):
            if k == kill_after:
                break
        state = reloaded(setup, state)
        assert trained(setup, state) == expected[kill_after // 4 :]
        assert state.unaveraged_weights is not None
        assert whole.unaveraged_weights is not None
        assert all(
            torch.equal(state.unaveraged_weights[name], value) for name, value in whole.unaveraged_weights.items()
        )
        pairs = zip(state.backbone.state_dict().values(), whole.backbone.state_dict().values(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_what_a_method_has_learned_is_forgotten_with_the_cycle() -> None:
    setup = prepared(method_of("softmatch", ratio=2))
    state = initial_state(setup)
    next(train(setup, state))
    assert state.task is not None
    assert state.task["rule.marginal"].any()
    use_average(state)
    assert state.task is None


QUICK = (*TINY, "training.epochs=1", "budget.cycles=2")


@pytest.mark.parametrize("option", METHODS)
def test_every_option_trains(option: str) -> None:
    setup = prepared(method_of(option), epochs=1)
    (metrics,) = trained(setup, initial_state(setup))
    assert metrics["train/unlabeled_loss"] >= 0
    assert 0 <= metrics["train/pseudo_label_rate"] <= 1
    assert 0 <= metrics.get("train/pseudo_label_accuracy", 0) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "extra"),
    [
        ("sslpm+task_ssl=fixmatch+task_ssl.rule.threshold=0.2", ()),
        (
            "random+task_ssl=fixmatch+task_ssl.ratio=200+task_ssl.rule.threshold=0.2",
            ("method=random", "task_ssl.ratio=200", "budget.cycles=1"),
        ),
        (
            "sslpm+query=query_by_committee+ssl=mean_teacher+task_ssl=fixmatch+task_ssl.rule.threshold=0.2",
            ("ssl=mean_teacher", "query=query_by_committee", "budget.validation=0.25", "training.checkpoint=best"),
        ),
        (
            "random+query=temporal_output_discrepancy+task_ssl=fixmatch+task_ssl.rule.threshold=0.2",
            ("method=random", "query=temporal_output_discrepancy", "budget.initial=1", "budget.per_cycle=1"),
        ),
    ],
)
def test_it_combines_with_every_part_of_the_loop(sslpl: Command, label: str, extra: tuple[str, ...]) -> None:
    done = sslpl(*QUICK, "task_ssl=fixmatch", "task_ssl.rule.threshold=0.2", *extra)
    assert done.code == 0, done.err
    assert set(run_folder().parent.name.split("+")) == set(label.split("+"))
    assert all(math.isfinite(float(row["test_accuracy"])) for row in timeless(run_folder()))


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = (1, 4, 6)
    task = ("task_ssl=freematch", "task_ssl.rule.momentum=0.6", "task_ssl.average=0.6", "task_ssl.ratio=2")
    everything = (*QUICK, "method=random", "runtime.checkpoint_minutes=0", *task)
    assert sslpl(*everything, "runtime.output_dir=whole").code == 0
    save, saves = checkpoint.save, []

    def dying_save(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saves.append(1)
        if len(saves) in kills:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying_save)
    for _ in kills:
        with pytest.raises(Killed):
            sslpl(*everything, "runtime.output_dir=killed")
    assert sslpl(*everything, "runtime.output_dir=killed").code == 0
    whole, killed = run_folder(Path("whole")), run_folder(Path("killed"))
    assert (whole / "queries.csv").read_bytes() == (killed / "queries.csv").read_bytes()
    assert timeless(whole) == timeless(killed)
    ours, theirs = (torch.load(f / "checkpoint" / "weights.pt", weights_only=True) for f in (whole, killed))
    assert all(torch.equal(value, theirs["backbone"][name]) for name, value in ours["backbone"].items())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("task_ssl=fixmatch", "task_ssl.ratio=0"), "task_ssl.ratio=0: must be greater than or equal to 1"),
        (("task_ssl=fixmatch", "task_ssl.average=1.0"), "task_ssl.average=1.0: must be less than 1"),
        (("task_ssl=fixmatch", "task_ssl.align=x"), "task_ssl.align=x: must be 'none', 'uniform' or 'labeled'"),
        (("task_ssl=uda", "task_ssl.rule.temperature=0"), "task_ssl.rule.temperature=0: must be greater than 0"),
        (("task_ssl=fixmatch", "task_ssl.threshold=0.9"), "task_ssl.threshold=0.9: no such key; "),
    ],
)
def test_mistakes_get_one_line(sslpl: Command, arguments: tuple[str, ...], expected: str) -> None:
    done = sslpl(*arguments, "tracker=none")
    assert done.code == 2
    assert expected in done.err
