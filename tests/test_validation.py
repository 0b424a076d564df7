"""Held-out labels: never trained on, part of the budget, used to choose the best networks."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from sslpl.config.build import build_setup
from sslpl.learn import best_epoch, finetune_epoch
from sslpl.loop import initial_state, run_active_learning
from sslpl.phases import train
from sslpl.phases.query import query_context
from sslpl.recording import checkpoint
from sslpl.recording.run_tables import COLUMNS
from sslpl.run import errors, jobs
from sslpl.run.estimate import cycle_counts
from sslpl.setup import Setup
from sslpl.state import State, weights_of
from sslpl.tracking.trackers import NoTracker

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
EPOCHS = 3
VALIDATED = (*TINY, "budget.validation=0.25", f"training.epochs={EPOCHS}")
BEST = (*VALIDATED, "training.checkpoint=best", "budget.initial=48")


def setup_of(*overrides: str) -> Setup:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(errors.CONF), version_base="1.3"):
        config, _ = jobs.compose_config(overrides)
    return build_setup(config, instantiate(config["runtime"]))


class PhaseRecorder:
    """Records the state at the end of each phase, and counts trainings whose last networks are not the best."""

    def __init__(self) -> None:
        self.worse = 0
        self.steps: list[str] = []
        self.seen: list[tuple[str, list[int], list[int], list[int]]] = []

    def on_phase_start(self, setup: Setup, state: State) -> None: ...

    def on_step(self, state: State, _: object) -> None:
        self.steps.append(f"{state.phase} {state.cycle}")
        if state.phase == "train" and state.epoch == EPOCHS and state.best is not None:
            best, last = state.best.backbone, weights_of(state.backbone)
            self.worse += any(not torch.equal(best[name], last[name]) for name in last)

    def on_phase_end(self, state: State) -> None:
        self.seen.append((state.phase, state.held_out.tolist(), state.excluded.tolist(), state.train_index.tolist()))


@pytest.mark.parametrize("method", ["sslpm", "scal"])
def test_what_is_held_out_is_labeled_and_never_learned_from(monkeypatch: Patch, method: str) -> None:
    setup = setup_of(*TINY, f"method={method}", "budget.validation=0.2", "budget.initial=260")
    state, strangers = initial_state(setup), []
    for module in (train, finetune_epoch):
        whole = module.epoch_batches

        def noted(index: torch.Tensor, *rest: Any, _whole: Callable[..., Any] = whole) -> list[torch.Tensor]:
            strangers.append(int(torch.isin(index, state.held_out).sum()))
            return _whole(index, *rest)

        monkeypatch.setattr(module, "epoch_batches", noted)
    watching = PhaseRecorder()
    run_active_learning(setup, state, watching)
    held_out = state.held_out
    assert len(held_out) == len(held_out.unique()) == 52 + 5 + 5
    assert torch.isin(held_out, state.pool.labeled).all()
    assert len(strangers) > 6
    assert not any(strangers)
    for _, held, excluded, learned in watching.seen:
        assert not set(held) & {*excluded, *learned}
    assert len(state.excluded) == 0  # nothing is trimmed before the last cycle
    assert [row["labeled"] for row in state.history] == [260, 284, 308]
    for cycle in range(3):  # the dry run estimates what happened
        labeled, _, steps, tuned, _ = cycle_counts(setup, cycle)
        assert labeled == 260 + 24 * cycle
        assert steps == watching.steps.count(f"train {cycle}")
        assert tuned == watching.steps.count(f"finetune {cycle}")


def test_the_dry_run_excludes_held_out_images() -> None:
    plain, validated = (cycle_counts(setup_of(*TINY, "budget.initial=400", v), 1)
                        for v in ("budget.validation=0.0", "budget.validation=0.25"))  # fmt: skip
    assert plain[:2] == (424, 420)
    assert validated[:2] == (424, 424 - 106 - 2)
    assert (plain[2:4], validated[2:4]) == ((2 * 27, 27), (2 * 20, 20))


def test_the_first_draw_is_shared_and_strategies_do_not_see_what_is_held_out() -> None:
    setup = setup_of(*TINY, "budget.validation=0.25")
    state, other = initial_state(setup), initial_state(setup_of(*TINY, "budget.validation=0.25", "method=random"))
    assert torch.equal(state.held_out, other.held_out)
    assert len(state.held_out) == 6
    assert not torch.equal(state.held_out, initial_state(setup_of(*TINY, "budget.validation=0.25", "seed=1")).held_out)
    context = query_context(setup, state)
    assert sorted([*context.labeled.tolist(), *state.held_out.tolist()]) == sorted(state.pool.labeled.tolist())
    assert torch.equal(context.labels, setup.dataset.train_labels[context.labeled])
    assert not torch.isin(context.unlabeled, state.held_out).any()


@pytest.mark.parametrize(("accuracies", "best"), [([0.3, 0.8, 0.8, 0.1], 2), ([0.9, 0.1, 0.2, 0.3], 0), ([0.0] * 4, 3)])
def test_the_best_networks_are_copies_of_the_later_of_the_best_epochs(
    monkeypatch: Patch, accuracies: list[float], best: int
) -> None:
    setup = setup_of(*VALIDATED, "training.epochs=4", "training.checkpoint=best")
    state, said = initial_state(setup), iter(accuracies)
    monkeypatch.setattr(best_epoch, "accuracy", lambda *_: next(said))
    after = []
    for step in train.train(setup, state):
        if step.metrics is not None:
            assert step.metrics["train/validation_accuracy"] == accuracies[len(after)]
            after.append((weights_of(state.backbone), weights_of(state.module)))  # type: ignore[arg-type]
    assert state.best is None
    assert state.row["validation_accuracy"] == max(accuracies)
    now = (state.backbone.state_dict(), state.module.state_dict())  # type: ignore[union-attr]
    for network, weights in enumerate(now):
        assert all(torch.equal(value, after[best][network][name]) for name, value in weights.items())
    different = [all(torch.equal(a, b) for a, b in zip(now[0].values(), w[0].values(), strict=True)) for w in after]
    assert different == [epoch == best for epoch in range(4)]


def test_validation_accuracy_is_that_of_the_revealed_labels(monkeypatch: Patch) -> None:
    setup = setup_of(*VALIDATED, "dataset.label_noise=1.0")
    state = initial_state(setup)
    metrics = [step.metrics for step in train.train(setup, state) if step.metrics is not None]
    said = best_epoch.predict(setup, state.backbone, None, setup.dataset.train, state.held_out).logits.argmax(dim=1)
    right = (said == setup.dataset.train_labels[state.held_out]).double().mean().item()
    assert metrics[-1]["train/validation_accuracy"] == state.row["validation_accuracy"] == right


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Returns the result of an uninterrupted run, and the number of cycles whose best networks were not the last."""
    setup, watching = setup_of(*BEST), PhaseRecorder()
    state = run_active_learning(setup, initial_state(setup), watching)
    return {"weights": state.to_dict(), "order": state.pool.labeled, "worse": watching.worse}


@pytest.mark.parametrize("after", [9, *(pytest.param(after, marks=pytest.mark.slow) for after in (2, 10, 20))])
def test_a_killed_run_chooses_the_same_networks(
    sslpl: Command, monkeypatch: Patch, whole: dict[str, Any], after: int
) -> None:
    save, saves = checkpoint.save, []

    def dying_save(*arguments: Any) -> None:
        save(*arguments)
        saves.append(1)
        if len(saves) == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying_save)
        with pytest.raises(Killed):
            sslpl(*BEST, "runtime.checkpoint_minutes=0")
    assert sslpl(*BEST).code == 0
    final = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)
    for name in ("backbone", "module"):
        expected = whole["weights"][name]
        assert all(torch.equal(value, final[name][key]) for key, value in expected.items())
    with (run_folder() / "queries.csv").open() as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == whole["order"].tolist()
    assert whole["worse"] > 0  # or this test would say nothing


@pytest.mark.slow
def test_the_numbers_go_to_tracker_and_summary_alone(sslpl: Command, monkeypatch: Patch) -> None:
    rows: list[dict[str, float]] = []
    monkeypatch.setattr(NoTracker, "log", lambda _, __, metrics: rows.append(dict(metrics)))
    assert sslpl(*VALIDATED, "runtime.output_dir=last").code == 0
    by_epoch = [row["train/validation_accuracy"] for row in rows if "train/validation_accuracy" in row]
    by_cycle = {row["cycle"]: row["validation/accuracy"] for row in rows if "validation/accuracy" in row}
    assert len(by_epoch) == 9
    assert [by_cycle[k] for k in range(3)] == by_epoch[2::3]
    folder = run_folder(Path("last"))
    assert json.loads((folder / "summary.json").read_text())["validation_accuracy"] == by_epoch[2::3]
    assert (folder / "metrics.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [row["labeled"] for row in timeless(folder)] == ["24", "48", "72"]
    with (folder / "queries.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 72
    rows.clear()
    assert sslpl(*VALIDATED, "training.checkpoint=best", "runtime.output_dir=best").code == 0
    by_epoch = [row["train/validation_accuracy"] for row in rows if "train/validation_accuracy" in row]
    summary = json.loads((run_folder(Path("best")) / "summary.json").read_text())
    assert summary["validation_accuracy"] == [max(by_epoch[k : k + 3]) for k in (0, 3, 6)]
    assert sslpl(*TINY, "runtime.output_dir=without").code == 0
    assert "validation_accuracy" not in json.loads((run_folder(Path("without")) / "summary.json").read_text())
