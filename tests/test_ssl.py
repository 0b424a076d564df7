"""SSL methods: against their published formulas in explicit loops, in the fine-tune, and after kills."""

import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from torch import Tensor

from sslpl import ranking
from sslpl.budget import Budget
from sslpl.data.augmentation import Augmentation
from sslpl.data.datasets import digits
from sslpl.learn import finetune_epoch, frozen_losses
from sslpl.learn.averages import update_teacher
from sslpl.loop import advance, initial_state
from sslpl.models.backbone import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.phases.finetune import finetune
from sslpl.phases.train import train
from sslpl.query.score_then_select import score_then_select
from sslpl.recording import checkpoint
from sslpl.run.errors import CONF
from sslpl.seeds import build_seeded
from sslpl.setup import Setup
from sslpl.ssl import rules
from sslpl.ssl.adaptive import FlexMatch, FreeMatch, SoftMatch
from sslpl.ssl.rules import Consistency, LabelGuessing, MeanTeacher, divergence_from, pseudo_label_soft, uda
from sslpl.state import State, weights_of
from sslpl.training import Training
from sslpl.types import PseudoLabel

Command = Callable[..., Result]
OPTIONS = sorted(path.stem for path in (CONF / "ssl").glob("*.yaml"))


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def probabilities(logits: Tensor) -> list[list[float]]:
    return [softmax(row) for row in logits.tolist()]


def stream(batches: int = 12, size: int = 8, classes: int = 4, images: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of weak logits, confident and not, and image indices, with a rare class and repeated images."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1.0, 0.9, 0.5])[:classes]
    return [
        (
            6 * torch.rand(size, 1, generator=generator) * torch.randn(size, classes, generator=generator) * scale,
            torch.randperm(images, generator=generator)[:size],
        )
        for _ in range(batches)
    ]


def one_hot(row: list[float]) -> list[float]:
    return [float(c == row.index(max(row))) for c in range(len(row))]


def test_uda_by_hand() -> None:
    logits = stream(1, size=40)[0][0]
    target, weight = uda(logits)
    assert weight.tolist() == [float(max(row) > 0.8) for row in probabilities(logits)]
    assert 0 < weight.sum() < 40
    torch.testing.assert_close(target, torch.tensor([softmax(row, temperature=0.4) for row in logits.tolist()]))


def test_label_guessing_by_hand() -> None:
    views = [stream(3, size=5)[k][0] for k in range(3)]
    target, weight = LabelGuessing(temperature=0.5, views=3)(torch.cat(views))
    assert weight.tolist() == [1] * 5
    for image in range(5):
        rows = [probabilities(view)[image] for view in views]
        powers = [(sum(column) / 3) ** (1 / 0.5) for column in zip(*rows, strict=True)]
        torch.testing.assert_close(target[image], torch.tensor([power / sum(powers) for power in powers]))


def test_guessing_with_a_small_temperature_does_not_underflow() -> None:
    target, _ = LabelGuessing(temperature=0.01)(torch.zeros(4, 100))
    torch.testing.assert_close(target, torch.full((2, 100), 0.01))


def test_flexmatch_by_hand() -> None:
    method, threshold, classes, learned = FlexMatch(4, 24, threshold=0.8), 0.8, range(4), [-1] * 24
    kept, warm, after = 0.0, 0, 0
    for logits, index in stream():
        target, weight = method(logits, index)
        sigma = [sum(c == known for known in learned) for c in classes]
        beta = [sigma[c] / max(*sigma, 24 - sum(sigma)) for c in classes]
        warm, after = warm + (24 - sum(sigma) > max(sigma)), after + (24 - sum(sigma) < max(sigma))
        wanted = [beta[c] / (2 - beta[c]) * threshold for c in classes]
        for image, row in enumerate(probabilities(logits)):
            guess = row.index(max(row))
            assert weight[image] == (max(row) >= wanted[guess])
            assert target[image].tolist() == one_hot(row)
        for image, row in zip(index.tolist(), probabilities(logits), strict=True):
            learned[image] = row.index(max(row)) if max(row) >= threshold else learned[image]
        assert method.learned.tolist() == learned
        kept += weight.mean().item() / 12
    assert min(warm, after) > 0  # both sides of the warm-up were seen
    assert 0 < kept < 1


def test_freematch_by_hand() -> None:
    method, m, level, marginal = FreeMatch(4, 24, momentum=0.7), 0.7, 1 / 4, [1 / 4] * 4
    kept = 0.0
    for logits, index in stream():
        target, weight = method(logits, index)
        rows = probabilities(logits)
        level = m * level + (1 - m) * sum(map(max, rows)) / len(rows)
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        marginal = [m * old + (1 - m) * new for old, new in zip(marginal, means, strict=True)]
        for image, row in enumerate(rows):
            wanted = level * marginal[row.index(max(row))] / max(marginal)
            assert abs(max(row) - wanted) > 1e-6  # no tie that rounding could decide
            assert weight[image] == (max(row) >= wanted)
            assert target[image].tolist() == one_hot(row)
        kept += weight.mean().item() / 12
    torch.testing.assert_close(method.level.item(), level, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(method.marginal, torch.tensor(marginal))
    assert 0 < kept < 1


@pytest.mark.parametrize("n_sigma", [1.0, 2.0])
@pytest.mark.parametrize("alignment", [False, True])
def test_softmatch_by_hand(n_sigma: float, alignment: bool) -> None:
    method = SoftMatch(4, 24, momentum=0.7, n_sigma=n_sigma, uniform_alignment=alignment)
    m, mu, variance, marginal = 0.7, 1 / 4, 1.0, None
    for logits, index in stream():
        target, weight = method(logits, index)
        rows = probabilities(logits)
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        marginal = means if marginal is None else [m * a + (1 - m) * b for a, b in zip(marginal, means, strict=True)]
        aligned = [[p / q for p, q in zip(row, marginal, strict=True)] for row in rows] if alignment else rows
        sure = [max(row) / sum(row) for row in aligned]
        mean = sum(sure) / len(sure)
        mu = m * mu + (1 - m) * mean
        variance = m * variance + (1 - m) * sum((c - mean) ** 2 for c in sure) / (len(sure) - 1)
        gauss = [1.0 if c >= mu else math.exp(-((n_sigma * (c - mu)) ** 2) / (2 * variance)) for c in sure]
        torch.testing.assert_close(weight, torch.tensor(gauss), rtol=1e-4, atol=1e-5)
        assert target.tolist() == [one_hot(row) for row in rows]  # of the probabilities as they are
    assert len(set(weight.tolist())) > 2  # weights, not a mask


def test_softmatch_of_images_all_alike_counts_them_all() -> None:
    for size in (1, 6):
        method = SoftMatch(3, size, momentum=0.0)
        for _ in range(3):
            weight = method(torch.tensor([[0.3, 0.1, 0.2]] * size), torch.arange(size)).weight
            torch.testing.assert_close(weight, torch.ones(size), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["cross_entropy", "kl", "mse"])
def test_divergences_by_hand(kind: str) -> None:
    weak, strong = stream(2, size=6)[0][0], stream(2, size=6)[1][0]
    weak[0, 0] = 1000.0  # a probability of 0 has no logarithm
    target, weight = Consistency()(weak)
    assert weight.tolist() == [1] * 6
    for image, value in enumerate(divergence_from(strong, target, kind).tolist()):  # type: ignore[arg-type]
        pairs = list(zip(target[image].tolist(), softmax(strong[image].tolist()), strict=True))
        expected = {
            "cross_entropy": sum(-t * math.log(s) for t, s in pairs),
            "kl": sum(t * math.log(t / s) for t, s in pairs if t > 0),
            "mse": sum((t - s) ** 2 for t, s in pairs) / 4,
        }[kind]
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_teacher_is_the_true_mean_then_the_exponential_one() -> None:
    torch.manual_seed(0)
    network, teacher, seen, expected = small_cnn(num_classes=3, in_channels=1), None, [], torch.zeros(())
    for steps in range(1, 9):
        for parameter in network.parameters():
            parameter.data.normal_()
        network.train()(torch.randn(4, 1, 4, 4))  # moves the statistics of the batch norms
        teacher = update_teacher(teacher, network, 0.75, steps)
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        for name in ("head.weight", "stages.0.0.1.running_var"):
            expected = seen[0][name]
            for t, weights in enumerate(seen[1:], start=2):
                keep = min(0.75, 1 - 1 / t)
                expected = keep * expected + (1 - keep) * weights[name]
            torch.testing.assert_close(teacher[name], expected)
            if steps <= 4:
                torch.testing.assert_close(teacher[name], torch.stack([w[name] for w in seen]).mean(dim=0))
    restarted = update_teacher(teacher, network, 0.75, 1)
    assert torch.equal(restarted["head.weight"], network.state_dict()["head.weight"])
    small_cnn(num_classes=3, in_channels=1).load_state_dict(restarted)


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
def test_ranking_with_weights_by_hand(loss: Callable[..., Tensor]) -> None:
    predicted = torch.tensor([1.0, 0.0, 0.5, -1.0, 9.0])
    target = torch.tensor([3.0, 2.0, 1.0, 0.0, 9.0])  # pairs (0, 3) with gap 2 and (1, 2) with gap -0.5; the last drops
    weight = torch.tensor([0.5, 1.0, 0.25, 0.8, 0.1])
    pairs = {
        ranking.bce_ranking_loss: (math.log1p(math.exp(-2.0)), math.log1p(math.exp(0.5))),
        ranking.margin_ranking_loss: (0.0, 1.5),
    }[loss]
    expected = (0.5 * 0.8 * pairs[0] + 1.0 * 0.25 * pairs[1]) / 2
    assert loss(predicted, target, weight=weight).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [ranking.bce_ranking_loss, ranking.margin_ranking_loss])
def test_ranking_with_weights_of_one_is_the_published_loss_to_the_bit(loss: Callable[..., Tensor]) -> None:
    for size in (0, 1, 2, 7, 64):
        gradients, values = [], []
        for weight in (None, torch.ones(size)):
            predicted = torch.randn(size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
            value = loss(predicted, torch.linspace(1, 0, size), weight=weight)
            value.backward()
            values.append(value.detach())
            gradients.append(predicted.grad)
        assert torch.equal(*values)
        assert torch.equal(*gradients)


def make_setup(ssl: object, **training: object) -> Setup:
    data, device = digits("data"), torch.device("cpu")
    augmentation = Augmentation(
        data.train.shape, data.mean, data.std, flip=data.flip, padding=data.padding, cutout=data.cutout, device=device
    )

    def build(cycle: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        backbone = build_seeded(lambda: small_cnn(num_classes=10, in_channels=1), 0, f"backbone {cycle}")
        return backbone, build_seeded(lambda: LossPredictionModule(backbone.channels, width=8), 0, f"module {cycle}")

    tiny = Training(**{"epochs": 2, "finetune_epochs": 2, "batch_size": 16, "unlabeled_batch_limit": 20} | training)  # type: ignore[arg-type]
    return Setup(
        data, build, augmentation, ranking.bce_ranking_loss, ssl, score_then_select, Budget(64, 40, 2, 300),  # type: ignore[arg-type]
        tiny, 0, device, False,
    )  # fmt: skip


def trained(setup: Setup) -> State:
    """Returns a state before its first fine-tune."""
    state = initial_state(setup)
    for _ in train(setup, state):
        pass
    advance(setup, state)
    assert state.phase == "finetune"
    return state


def reloaded(setup: Setup, state: State) -> State:
    """Returns the state as another process loads it from a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state.to_dict(), buffer)
    other = initial_state(setup)
    other.load(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    return other


def finished(setup: Setup, state: State) -> State:
    """Returns the state after the fine-tune."""
    for _ in finetune(setup, state):
        pass
    return state


STATEFUL = {
    "flexmatch": partial(FlexMatch, threshold=0.14),
    "freematch": partial(FreeMatch, momentum=0.6),
    "softmatch": partial(SoftMatch, momentum=0.6),
    "mean_teacher": MeanTeacher(teacher_decay=0.6),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_checkpoint_holds_the_state_of_the_last_step_though_batches_are_pseudo_labeled_ahead(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    setup = make_setup(STATEFUL[name], unlabeled_batch_limit=100)
    start = trained(setup)

    def fine_tuned(kill_after: int) -> tuple[State, list[Tensor]]:
        """Runs the fine-tune; returns the state, and the pseudo-label counts and method state after each step."""
        state, seen = reloaded(setup, start), []
        for _ in range(2):
            for _ in finetune(setup, state):
                assert state.sums is not None
                seen.append(torch.cat([state.sums[3:], *(value.flatten() for value in (state.ssl or {}).values())]))
                if len(seen) == kill_after:
                    break
            state = reloaded(setup, state) if len(seen) == kill_after else state
        return state, seen

    whole, expected = fine_tuned(kill_after=0)
    assert len(expected) == 8  # two epochs of four steps
    assert whole.row["pseudo_label_rate"]
    monkeypatch.setattr(
        frozen_losses, "group_batches", lambda batches, *_: [list(batches)] if batches else []
    )  # as on a GPU
    for kill_after in (2, 5):
        killed, seen = fine_tuned(kill_after)
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
        assert killed.module is not None
        assert whole.module is not None
        for ours, theirs in zip(killed.module.parameters(), whole.module.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_method_with_a_state_starts_anew_in_every_cycle() -> None:
    setup = make_setup(STATEFUL["freematch"])
    state = finished(setup, trained(setup))
    assert state.ssl is not None
    advance(setup, state)
    assert state.ssl is None


def test_the_teacher_is_kept_only_for_a_method_that_asks() -> None:
    assert trained(make_setup(pseudo_label_soft)).teacher is None
    setup = make_setup(MeanTeacher(teacher_decay=0.6))
    state = trained(setup)
    assert state.teacher is not None
    assert not torch.equal(state.teacher["head.weight"], state.backbone.state_dict()["head.weight"])
    assert finished(setup, state).teacher is None


def test_the_teacher_pseudo_labels_and_the_backbone_is_ranked() -> None:
    seen: list[Tensor] = []

    class Recording(MeanTeacher):
        def __call__(self, weak_logits: Tensor) -> PseudoLabel:
            seen.append(weak_logits)
            return super().__call__(weak_logits)

    setup = make_setup(Recording(teacher_decay=0.6), finetune_epochs=1, unlabeled_batch_limit=4)
    state = trained(setup)
    drawn = finetune_epoch.draw_finetune_epoch(setup, state, 0)
    images = next(setup.dataset.train.batches(drawn.unlabeled[:1]))
    draws = type(drawn.weak_draws[0])(*(field[:4] for field in drawn.weak_draws[0]))
    teacher = setup.build(0)[0]
    assert state.teacher is not None
    teacher.load_state_dict(state.teacher)
    teacher.eval()
    expected = teacher(setup.augmentation.weak(images, draws)).logits
    next(finetune(setup, state))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_more_weak_views_leave_the_other_draws_as_they_are() -> None:
    one, two = (make_setup(method) for method in (pseudo_label_soft, LabelGuessing(views=2)))
    state = initial_state(one)
    ours, theirs = (finetune_epoch.draw_finetune_epoch(setup, state, 0) for setup in (one, two))
    assert (len(ours.weak_draws), len(theirs.weak_draws)) == (1, 2)
    pairs = [(ours.weak_draws[0], theirs.weak_draws[0]), (ours.strong_draws, theirs.strong_draws)]
    for mine, other in pairs:
        assert mine is not None
        assert other is not None
        assert all(map(torch.equal, mine, other))
    assert not torch.equal(theirs.weak_draws[0].shift, theirs.weak_draws[1].shift)


def test_without_a_confident_image_the_term_is_exactly_zero_and_nothing_is_augmented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsure(weak_logits: Tensor) -> PseudoLabel:
        return PseudoLabel(weak_logits.softmax(dim=1), torch.zeros(len(weak_logits)))

    states = []
    for method in (unsure, None):
        setup = make_setup(method)
        state = trained(setup)
        strong, augmented = Augmentation.strong, []
        with monkeypatch.context() as patch:
            patch.setattr(Augmentation, "strong", lambda *args: augmented.append(len(args[1])) or strong(*args))  # noqa: B023
            metrics = [step.metrics for step in finetune(setup, state) if step.metrics]
        assert [values["finetune/pseudo_ranking_loss"] for values in metrics] == [0.0, 0.0]
        assert sum(augmented) == 0
        states.append(weights_of(state.module))  # type: ignore[arg-type]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_soft_weights_count_in_the_pseudo_label_rate_and_accuracy() -> None:
    target, truth = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 0, 1])
    counts = rules.pseudo_label_counts(target, torch.tensor([1.0, 0.5, 0.25, 0.0]), truth)
    assert counts.sum(dim=0).tolist() == [1.75, 1.5, 4.0]


QUICK = (*TINY, "training.epochs=1", "budget.cycles=2")


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - {"none", "pseudo_label_soft", "pseudo_label_hard"}))
def test_every_option_runs(sslpl: Command, option: str) -> None:
    done = sslpl(*QUICK, f"ssl={option}")
    assert done.code == 0, done.err
    assert run_folder().parent.name == f"sslpm+ssl={option}"
    rate = float(timeless(run_folder())[0]["pseudo_label_rate"])
    assert 0 <= rate <= 1
    if option in ("label_guessing", "consistency", "mean_teacher"):
        assert rate == 1


@pytest.mark.parametrize(("method", "kills"), [("softmatch", (4, 6)), ("mean_teacher", (1, 4))])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch, method: str, kills: tuple[int, ...]
) -> None:
    faster = {"softmatch": "ssl.momentum=0.6", "mean_teacher": "ssl.teacher_decay=0.6"}[method]
    everything = (*QUICK, "training.finetune_epochs=2", "runtime.checkpoint_minutes=0", f"ssl={method}", faster)
    assert sslpl(*everything, "runtime.output_dir=whole").code == 0
    save, phases = checkpoint.save, []

    def dying_save(folder: Path, state: dict) -> None:  # type: ignore[type-arg]
        save(folder, state)
        phases.append(state["position"][1])
        if len(phases) in kills:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying_save)
    for _ in kills:
        with pytest.raises(Killed):
            sslpl(*everything, "runtime.output_dir=killed")
    assert sslpl(*everything, "runtime.output_dir=killed").code == 0
    assert phases[:7] == ["train"] * 2 + ["finetune"] * 5
    whole, killed = run_folder(Path("whole")), run_folder(Path("killed"))
    assert (whole / "queries.csv").read_bytes() == (killed / "queries.csv").read_bytes()
    assert timeless(whole) == timeless(killed)
    ours, theirs = (torch.load(f / "checkpoint" / "weights.pt", weights_only=True)["module"] for f in (whole, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ssl=flexmatch", "ssl.threshold=2"), "ssl.threshold=2: must be less than or equal to 1"),
        (("ssl=softmatch", "ssl.momentum=1.0"), "ssl.momentum=1.0: must be less than 1"),
        (("ssl=consistency", "ssl.divergence=far"), "ssl.divergence=far: must be 'cross_entropy', 'kl' or 'mse'"),
        (("ssl=label_guessing", "ssl.views=0"), "ssl.views=0: must be greater than or equal to 1"),
        (("ssl=mean_teacher", "ssl.decay=0.9"), "ssl.decay=0.9: no such key; "),
    ],
)
def test_mistakes_in_a_method_get_one_line(sslpl: Command, arguments: tuple[str, ...], expected: str) -> None:
    done = sslpl(*arguments, "tracker=none")
    assert done.code == 2
    assert expected in done.err
