"""Forecasts of the learning curve, the time of labeling, and rules that end a run early."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from test_browser_oracle import BROWSER, QUICK, label_until_end, truth, wait_for_link
from test_docs import ROOT
from test_validation import PhaseRecorder, setup_of

from sslpl.forecast import (
    MIN_CYCLES,
    accuracies_at,
    expected_gain,
    fit_power_laws,
    forecast_at,
    forecast_batches,
    forecast_line,
    forecast_target,
)
from sslpl.loop import initial_state, run_active_learning
from sslpl.recording import checkpoint
from sslpl.stopping import batch_exceeds_seconds, gain_is_small, predictions_are_stable

Command = Callable[..., Result]
LONG = (*TINY, "method=random", "budget.cycles=6", "training.epochs=1")
LABELS = tuple(range(100, 1100, 100))


def power_law(
    labels: tuple[int, ...], asymptote: float = 0.05, factor: float = 3.0, exponent: float = 0.6
) -> list[float]:
    return [1 - asymptote - factor * n**-exponent for n in labels]


def test_a_power_law_is_continued() -> None:
    exact = power_law((*LABELS, 1100, 2000))
    laws = fit_power_laws(LABELS, exact[:10], test_images=10_000)
    near, far = forecast_at(laws, 1100), forecast_at(laws, 2000)
    assert near.accuracy == pytest.approx(exact[10], abs=0.003)
    assert far.accuracy == pytest.approx(exact[11], abs=0.01)
    assert near.low < exact[10] < near.high
    assert far.low < exact[11] < far.high
    assert far.high - far.low > 1.5 * (near.high - near.low)


def test_noise_widens_the_interval_and_more_cycles_narrow_it() -> None:
    noisy = np.array(power_law(LABELS)) + np.random.default_rng(0).normal(0, 0.02, 10)

    def width(labels: tuple[int, ...], accuracy: object, test_images: int = 10_000) -> float:
        found = forecast_at(fit_power_laws(labels, list(accuracy), test_images), labels[-1] + 100)  # type: ignore[call-overload]
        return found.high - found.low

    assert width(LABELS, noisy) > 2 * width(LABELS, power_law(LABELS))
    assert width(LABELS, noisy, 100) > width(LABELS, noisy)
    assert width(LABELS[:4], power_law(LABELS[:4])) > width(LABELS, power_law(LABELS))


def test_the_interval_holds_the_noisy_truth_about_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(1), []
    for _ in range(200):
        labels = (*LABELS[:8], 1000)
        exact = power_law(labels, random.uniform(0, 0.2), random.uniform(1, 4), random.uniform(0.4, 0.9))
        measured = np.clip(np.array(exact) + random.normal(0, 0.01, 9), 0, 1)
        found = forecast_at(fit_power_laws(labels[:8], measured[:8].tolist(), 1000), 1000)
        covered.append(found.low <= measured[8] <= found.high)
    assert 0.7 < np.mean(covered) < 0.97


def test_accuracies_stay_within_bounds() -> None:
    draws = accuracies_at(fit_power_laws((10, 20, 30, 40), (0.1, 0.9, 1.0, 1.0), 50), 50)
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert np.isfinite(draws).all()


def test_there_is_no_forecast_from_few_cycles() -> None:
    few = LABELS[: MIN_CYCLES - 1], power_law(LABELS[: MIN_CYCLES - 1])
    assert forecast_batches(*few, 1000, 100, 3) == []
    assert forecast_target(*few, 1000, 100, 5000, 0.9) is None
    assert expected_gain(*few, 1000, 100) == float("inf")
    assert forecast_line([], None) == ""


def test_a_target_is_found_in_whole_batches() -> None:
    accuracy = power_law(LABELS)  # 0.9 needs (3 / 0.05)^(1 / 0.6), about 920 labels: it is reached at 1,000
    found = forecast_target(LABELS, accuracy, 10_000, 100, 5000, 0.92)
    assert found is not None
    assert found.labeled is not None
    assert (3 / 0.03) ** (1 / 0.6) - 500 < found.labeled < (3 / 0.03) ** (1 / 0.6) + 500
    assert found.labeled % 100 == 0
    assert found.earliest is not None
    assert found.earliest <= found.labeled
    assert found.latest is None or found.latest >= found.labeled
    beyond = forecast_target(LABELS, accuracy, 10_000, 100, 5000, 0.999)
    assert beyond is not None
    assert beyond.labeled is None
    line = forecast_line(forecast_batches(LABELS, accuracy, 10_000, 100, 1), beyond)
    assert "with 1,100" in line
    assert line.endswith("99.9% not within the pool (beyond the pool to beyond the pool)")


def test_the_expected_gain_falls_along_the_curve() -> None:
    gains = [expected_gain(LABELS[:k], power_law(LABELS[:k]), 10_000, 100) for k in (4, 7, 10)]
    assert gains == sorted(gains, reverse=True)
    exact = power_law((1000, 1100))
    assert gains[-1] == pytest.approx(exact[1] - exact[0], abs=0.001)
    assert gain_is_small(gains[-1], 0.01)
    assert not gain_is_small(gains[0], 0.01)


def test_predictions_are_stable_if_three_comparisons_agree() -> None:
    assert not predictions_are_stable([None, 1.0, 1.0], 0.99)
    assert predictions_are_stable([None, 0.5, 0.995, 0.999, 0.99], 0.99)
    assert not predictions_are_stable([0.999, 0.999, 0.96], 0.99)
    assert not predictions_are_stable([0.99, 0.99, 0.99], 0.99)


def test_a_batch_must_fit_the_seconds_that_are_left() -> None:
    assert not batch_exceeds_seconds(spent=60, labeled=30, per_cycle=10, available=80)
    assert batch_exceeds_seconds(spent=60, labeled=30, per_cycle=11, available=80)


def metrics() -> list[dict[str, str]]:
    with (run_folder() / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_ends_before_the_seconds_do_and_forecasts(sslpl: Command) -> None:
    done = sslpl(
        *LONG, "budget.seconds=250", "budget.seconds_per_label=2", "budget.target=0.99", "runtime.progress=plain"
    )
    assert done.code == 0, done.err
    assert "stops: another batch would exceed budget.seconds=250" in done.out
    rows, folder = metrics(), run_folder()
    assert [float(row["labeling_seconds"]) for row in rows] == [48, 96, 144, 192, 240]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    summary = json.loads((folder / "summary.json").read_text())
    assert [forecast["labeled"] for forecast in summary["forecast"]] == [144, 168, 192]
    assert all(0 <= f["low"] <= f["accuracy"] <= f["high"] <= 1 for f in summary["forecast"])
    assert summary["target"]["target"] == 0.99
    assert done.out.count("forecast ") == 2  # after the fourth and the fifth cycle
    again = sslpl(*LONG, "budget.seconds=250", "budget.seconds_per_label=2", "budget.target=0.9")
    assert again.out.startswith("finished already")  # a target is no other run


def test_a_killed_run_stops_where_a_whole_one_does(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ("budget.stop=stable_predictions", "budget.stop_kappa=0.0", "training.epochs=3")
    done = sslpl(*LONG, *rule, "runtime.output_dir=whole", "runtime.progress=plain")
    assert done.code == 0, done.err
    assert "stops: the predictions are stable" in done.out
    rows = timeless(run_folder(Path("whole")))
    assert len(rows) == 4
    assert not rows[0]["prediction_kappa"]
    assert all(-1 <= float(row["prediction_kappa"]) <= 1 for row in rows[1:])
    save, saves = checkpoint.save, []

    def save_and_die(path: Path, state: object) -> None:
        save(path, state)
        saves.append(path)
        if len(saves) == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        sslpl(*LONG, *rule, "runtime.output_dir=killed")
    monkeypatch.setattr(checkpoint, "save", save)
    assert sslpl(*LONG, *rule, "runtime.output_dir=killed").code == 0
    assert timeless(run_folder(Path("killed"))) == rows


@pytest.mark.parametrize(("gain", "cycles"), [(1.0, 4), (0.0, 6)])
def test_a_small_expected_gain_ends_a_run(gain: float, cycles: int) -> None:
    setup = setup_of(*LONG, "budget.stop=expected_gain", f"budget.stop_gain={gain}")
    state = initial_state(setup)
    run_active_learning(setup, state, PhaseRecorder())
    assert len(state.history) == cycles
    assert state.phase == "finished"


def test_successive_models_are_compared_on_the_same_images() -> None:
    setup = setup_of(*LONG, "budget.stop=stable_predictions", "budget.cycles=2")
    state = initial_state(setup)
    run_active_learning(setup, state, PhaseRecorder())
    assert state.stop_predictions is not None
    assert len(state.stop_predictions) == len(setup.dataset.train)  # the pool is smaller than 2,000 images
    assert int(torch.bincount(state.stop_predictions).sum()) == len(setup.dataset.train)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["budget.seconds=60"], "budget.seconds=60.0: needs budget.seconds_per_label above 0"),
        (["budget.seconds=0"], "budget.seconds=0: must be greater than 0"),
        (["budget.seconds_per_label=-1"], "budget.seconds_per_label=-1: must be greater than or equal to 0"),
        (["budget.target=1.5"], "budget.target=1.5: must be less than or equal to 1"),
        (["budget.stop=soon"], "budget.stop=soon: must be 'never', 'stable_predictions' or 'expected_gain'"),
        (["budget.stop_kappa=2"], "budget.stop_kappa=2: must be less than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(sslpl: Command, overrides: list[str], said: str) -> None:
    done = sslpl(*LONG, *overrides)
    assert done.code == 2
    assert done.err.startswith(f"sslpl: {said}"), done.err
    assert done.err.count("\n") == 1


def test_the_page_measures_the_time_of_labeling(sslpl: Command) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: label_until_end(wait_for_link(Path("outputs")), truth))
        done = sslpl(*QUICK, *BROWSER, "budget.cycles=4", "budget.seconds=50")
    assert done.code == 0, done.err
    assert [float(row["labeling_seconds"]) for row in metrics()] == [36.0, 48.0]  # 1.5 s a label: 60 s are too many


def test_the_coverage_is_measured_on_finished_runs(
    sslpl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 160)
    vectors = random.normal(size=(160, 4)) + labels[:, None]
    arrays = {"train": vectors[:100], "train_labels": labels[:100], "test": vectors[100:], "test_labels": labels[100:]}
    np.savez(tmp_path / "blobs.npz", **{k: v.astype(np.float32 if v.ndim > 1 else np.int64) for k, v in arrays.items()})
    runs = ("experiment=embeddings", f"dataset.file={tmp_path / 'blobs.npz'}", "method=random", "budget.cycles=6")
    done = sslpl("-m", *runs, "budget.initial=8", "budget.per_cycle=6", "seed=0,1", "tracker=none")
    assert done.code == 0, done.err
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import forecast

    monkeypatch.setattr("sys.argv", ["forecast.py", "outputs", "--cycles", "6", "--runs", "2"])
    capfd.readouterr()
    forecast.main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "2 runs"
    assert [line.split()[0] for line in lines[2:]] == ["all", "all", "blobs", "blobs"]
    monkeypatch.setattr("sys.argv", ["forecast.py", "outputs", "--runs", "200"])
    with pytest.raises(SystemExit, match="only 0 finished runs of at least 9 cycles"):
        forecast.main()
