"""Complete runs through the command line: their files, reproducibility, resuming, several processes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless

from sslpl import state
from sslpl.recording import checkpoint, recorder
from sslpl.recording.run_tables import COLUMNS

Command = Callable[..., Result]
METHODS = ("sslpm", "scal", "learning_loss", "entropy", "random")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_every_file(sslpl: Command) -> None:
    done = sslpl(*TINY)
    assert done.code == 0, done.err
    folder = run_folder()
    assert folder.parent == Path("outputs/digits/sslpm")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "provenance.json", "status.json", "metrics.csv", "queries.csv", "summary.json",
        "learning_curve.png", "checkpoint",
    }  # fmt: skip
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["weights.pt"]
    rows = read(folder / "metrics.csv")
    assert [int(row["labeled"]) for row in rows] == [24, 48, 72]
    assert tuple(rows[0]) == COLUMNS
    assert all(-1 <= float(row["loss_rank_correlation"]) <= 1 for row in rows)
    assert rows[-1]["query_seconds"] == rows[-1]["finetune_seconds"] == ""
    ledger = read(folder / "queries.csv")
    assert [int(row["cycle"]) for row in ledger] == [0] * 24 + [1] * 24 + [2] * 24
    assert len({row["index"] for row in ledger}) == 72
    assert all(row["score"] == "" for row in ledger[:24])
    assert all(row["score"] for row in ledger[24:])
    summary = json.loads((folder / "summary.json").read_text())
    accuracy = [float(row["test_accuracy"]) for row in rows]
    assert summary["test_accuracy"] == accuracy
    assert summary["aubc"] == pytest.approx((accuracy[0] / 2 + accuracy[1] + accuracy[2] / 2) / 2)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"].startswith("run.py training.epochs=2")
    assert provenance["versions"]["torch"] == torch.__version__
    assert not Path(".hydra").exists()
    assert [path.name for path in Path().iterdir()] == ["outputs"]


def test_the_ledger_tells_the_true_labels(sslpl: Command) -> None:
    from sslpl.data.datasets import digits

    sslpl(*TINY, "method=random")
    truth = digits("data").train_labels
    assert all(int(row["label"]) == truth[int(row["index"])] for row in read(run_folder() / "queries.csv"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats_exactly(sslpl: Command, method: str) -> None:
    for root in ("first", "second"):
        done = sslpl(*TINY, f"method={method}", f"runtime.output_dir={root}")
        assert done.code == 0, done.err
    first, second = (run_folder(Path(root)) for root in ("first", "second"))
    assert first.parts[1:] == second.parts[1:]
    assert (first / "queries.csv").read_bytes() == (second / "queries.csv").read_bytes()
    assert timeless(first) == timeless(second)
    weights = [torch.load(f / "checkpoint" / "weights.pt", weights_only=True) for f in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*(w["backbone"].values() for w in weights), strict=True))


def test_the_ceiling_has_one_cycle_with_all_labels(sslpl: Command) -> None:
    done = sslpl("method=full", "training.epochs=1", "tracker=none", "runtime.progress=none")
    assert done.code == 0, done.err
    (row,) = read(run_folder() / "metrics.csv")
    assert int(row["labeled"]) == 1437
    assert row["loss_rank_correlation"] == ""


def test_a_finished_run_is_not_run_again(sslpl: Command) -> None:
    sslpl(*TINY, "method=random")
    before = {path: path.stat().st_mtime_ns for path in run_folder().rglob("*")}
    done = sslpl(*TINY, "method=random")
    assert done.code == 0
    assert done.out == f"finished already: {run_folder()}\n"
    assert {path: path.stat().st_mtime_ns for path in run_folder().rglob("*")} == before


@pytest.mark.parametrize("after", [1, 5, *(pytest.param(after, marks=pytest.mark.slow) for after in (4, 7, 9, 12, 14))])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    everything = (*TINY, "runtime.checkpoint_minutes=0")
    assert sslpl(*everything, "runtime.output_dir=whole").code == 0
    save, saves = checkpoint.save, []

    def dying_save(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saves.append(1)
        if len(saves) == after:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying_save)
    with pytest.raises(Killed):
        sslpl(*everything, "runtime.output_dir=killed")
    monkeypatch.setattr(checkpoint, "save", save)
    done = sslpl(*everything, "runtime.output_dir=killed", "runtime.progress=plain")
    assert done.code == 0, done.err
    assert "resumed at cycle" in done.out
    whole, killed = run_folder(Path("whole")), run_folder(Path("killed"))
    assert (whole / "queries.csv").read_bytes() == (killed / "queries.csv").read_bytes()
    assert timeless(whole) == timeless(killed)


def test_a_kill_before_the_last_tables_loses_nothing(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sslpl(*TINY, "runtime.output_dir=whole").code == 0
    file = recorder.Recorder.file

    def dying_file(self: recorder.Recorder, state: state.State) -> None:
        if len(state.history) == 3:
            raise Killed
        file(self, state)

    monkeypatch.setattr(recorder.Recorder, "file", dying_file)
    with pytest.raises(Killed):
        sslpl(*TINY, "runtime.output_dir=killed")
    monkeypatch.setattr(recorder.Recorder, "file", file)
    (run_folder(Path("killed")) / ".metrics.csv.partial-1").write_text("half")
    assert sslpl(*TINY, "runtime.output_dir=killed").code == 0
    assert not list(Path("killed").rglob(".*"))
    whole, killed = run_folder(Path("whole")), run_folder(Path("killed"))
    assert (whole / "queries.csv").read_bytes() == (killed / "queries.csv").read_bytes()
    assert timeless(whole) == timeless(killed)
    assert len(json.loads((killed / "provenance.json").read_text())["resumed"]) == 1


def test_short_cycles_are_recorded_when_it_is_cheap_and_at_the_end(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sslpl(*TINY, "method=random", "runtime.output_dir=every").code == 0
    file, filed = recorder.Recorder.file, []

    def counted(self: recorder.Recorder, state: state.State) -> None:
        filed.append(len(state.history))
        file(self, state)

    monkeypatch.setattr(recorder.Recorder, "file", counted)
    monkeypatch.setattr(recorder, "RECORDING_COST_FACTOR", 1e9)
    assert sslpl(*TINY, "method=random", "runtime.output_dir=seldom").code == 0
    assert filed == [0, 3]  # before the first cycle, when nothing has been measured yet, and at the end
    every, seldom = run_folder(Path("every")), run_folder(Path("seldom"))
    assert timeless(every) == timeless(seldom)
    assert (every / "queries.csv").read_bytes() == (seldom / "queries.csv").read_bytes()


def test_a_run_that_is_stopped_has_every_finished_cycle_in_its_tables(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    step = recorder.Recorder.on_step

    def signalled(self: recorder.Recorder, state: state.State, done: object) -> None:
        if len(state.history) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, state, done)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder.Recorder, "on_step", signalled)
    monkeypatch.setattr(recorder, "RECORDING_COST_FACTOR", 1e9)
    assert sslpl(*TINY, "method=random").code == 128 + signal.SIGTERM
    assert [int(row["labeled"]) for row in read(run_folder() / "metrics.csv")] == [24, 48]


def test_a_signal_saves_and_ends_with_its_code(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    step, seen = recorder.Recorder.on_step, []

    def signalled(self: recorder.Recorder, *arguments: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder.Recorder, "on_step", signalled)
    done = sslpl(*TINY)
    assert done.code == 128 + signal.SIGTERM
    assert done.err == "sslpl: interrupted by SIGTERM; rerun the same command to resume\n"
    assert json.loads((run_folder() / "status.json").read_text())["state"] == "interrupted"
    monkeypatch.setattr(recorder.Recorder, "on_step", step)
    assert sslpl(*TINY).code == 0


def test_methods_with_one_seed_share_their_world(sslpl: Command) -> None:
    initial, accuracy = {}, {}
    for method in ("sslpm", "random", "entropy"):
        sslpl(*TINY, f"method={method}", f"runtime.output_dir={method}")
        ledger = read(run_folder(Path(method)) / "queries.csv")
        initial[method] = [row["index"] for row in ledger if row["cycle"] == "0"]
        accuracy[method] = timeless(run_folder(Path(method)))[0]["test_accuracy"]
    assert initial["sslpm"] == initial["random"] == initial["entropy"]
    assert accuracy["random"] == accuracy["entropy"]  # same weights, same order, same augmentation
    sslpl(*TINY, "method=random", "seed=1", "runtime.output_dir=other")
    other = [row["index"] for row in read(run_folder(Path("other")) / "queries.csv")[:24]]
    assert other != initial["random"]


@pytest.mark.parametrize(
    "extra",
    [
        ("budget.initial=1", "budget.per_cycle=1", "budget.candidates=5"),
        ("budget.initial=3", "training.batch_size=1", "budget.cycles=2"),
        ("budget.initial=17", "training.batch_size=16", "budget.cycles=2"),
        ("budget.initial=300", "training.batch_size=7", "budget.cycles=2", "training.epochs=1"),
        (
            "budget.initial=1400",
            "budget.per_cycle=37",
            "budget.cycles=2",
            "training.batch_size=512",
            "training.epochs=1",
        ),
        ("training.warm_start=false", "budget.cycles=2"),
        ("training.unlabeled_batch_limit=3", "budget.cycles=2"),
        ("ssl=pseudo_label_hard", "ssl.threshold=1.0", "training.precision=bfloat16", "budget.cycles=2"),
        ("method=random", "backbone=resnet18", "budget.initial=4", "budget.per_cycle=2", "budget.cycles=2"),
        ("budget.initial=400", "budget.cycles=3", "training.epochs=1"),
    ],
)
def test_unusual_budgets_and_batches_are_legal(sslpl: Command, extra: tuple[str, ...]) -> None:
    done = sslpl(*TINY, *extra)
    assert done.code == 0, done.err
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in read(run_folder() / "metrics.csv"))


def test_a_dry_run_writes_nothing(sslpl: Command) -> None:
    done = sslpl(*TINY, "runtime.dry_run=true")
    assert done.code == 0, done.err
    assert "estimated time" in done.out
    assert list(Path().iterdir()) == []


def test_a_multirun_runs_each_job_in_its_own_folder(sslpl: Command) -> None:
    done = sslpl("-m", *TINY, "method=random,entropy", "seed=0,1")
    assert done.code == 0, done.err
    folders = sorted(str(path.parent.parent) for path in Path("outputs").glob("**/status.json"))
    assert folders == ["outputs/digits/entropy"] * 2 + ["outputs/digits/random"] * 2
    assert [path.name for path in Path().iterdir()] == ["outputs"]
