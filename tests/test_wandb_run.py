"""Complete runs that stream to a local W&B server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from conftest import TINY, Result, run_folder
from test_tracking import KEY, server, stranger  # noqa: F401 - fixtures
from wandb_server import ENTITY, FakeRun, WandbServer

from sslpl.recording import recorder
from sslpl.report.read import read_run

Command = Callable[..., Result]
RUN = [*(option for option in TINY if option != "tracker=none"), "budget.cycles=2"]


def cycles(seen: WandbServer, run: str) -> list[dict]:
    return [line for line in seen.runs[run].lines if "test/accuracy" in line]


def test_cycles_and_training_curves_are_streamed(sslpl: Command, server: WandbServer) -> None:  # noqa: F811
    done = sslpl(*RUN)
    assert done.code == 0, done.err
    folder = run_folder()
    (run_id,) = server.runs
    run = server.runs[run_id]
    config_id, token = run_id.split("-")
    assert (folder.name, run.config["config_id"]) == (f"seed0-{config_id}", config_id)
    assert json.loads((folder / "provenance.json").read_text())["run_token"] == token
    assert [line["labeled"] for line in cycles(server, run_id)] == [24, 48]
    summary = json.loads((folder / "summary.json").read_text())
    assert [line["test/accuracy"] for line in cycles(server, run_id)] == summary["test_accuracy"]
    assert sum("train/loss" in line for line in run.lines) == 4  # 2 epochs in each of 2 cycles
    assert sum("finetune/ranking_loss" in line for line in run.lines) == 1
    steps = [line["_step"] for line in run.lines]
    assert steps == sorted(set(steps))
    assert run.upsert["groupName"] == f"digits/sslpm/{read_run(folder).setting}"
    assert run.config["budget"]["initial"] == 24
    assert run.config["provenance"]["versions"]["torch"]
    assert run.summary["aubc"] == pytest.approx(summary["aubc"])
    assert run.exit_code == 0
    assert [artifact["artifactCollectionName"] for artifact in run.artifacts] == [f"queries-{run_id}"]
    assert all(KEY.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_interrupted_run_goes_on_under_its_id_without_doubled_steps(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, seen = recorder.Recorder.on_step, []

    def interrupting(self: recorder.Recorder, *arguments: object) -> None:
        seen.append(1)
        if len(seen) == 6:
            self.signal = 2
        step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder.Recorder, "on_step", interrupting)
    assert sslpl(*RUN).code == 130
    monkeypatch.setattr(recorder.Recorder, "on_step", step)
    assert sslpl(*RUN).code == 0
    (run_id,) = server.runs
    assert [line["labeled"] for line in cycles(server, run_id)] == [24, 48]
    steps = [line["_step"] for line in server.runs[run_id].lines]
    assert steps == sorted(set(steps))
    assert server.runs[run_id].exit_code == 0


def test_each_job_of_a_multirun_is_a_run_and_a_failed_one_shows(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def broken(*_: object) -> None:
        raise RuntimeError("no entropy today")

    monkeypatch.setattr("sslpl.query.entropy", broken)
    assert sslpl("-m", *RUN, "method=entropy,random").code == 1
    ended = {run.config["method_name"]: run.exit_code for run in server.runs.values()}
    assert ended == {"entropy": 1, "random": 0}


@pytest.mark.slow
def test_one_config_in_two_folders_is_two_runs_and_resumed_it_is_one(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = [*RUN, "method=random", "training.epochs=1"]
    assert sslpl(*fast, "runtime.output_dir=mine").code == 0
    assert sslpl(*fast, "runtime.output_dir=a_colleagues").code == 0
    first, second = server.runs.values()
    assert first.config["config_id"] == second.config["config_id"]
    for run in (first, second):
        assert len([line for line in run.lines if "test/accuracy" in line]) == 2
    assert len(cycles_once(second)) == len(second.lines)

    phase, seen = recorder.Recorder.on_phase_end, []

    def killing(self: recorder.Recorder, *arguments: object) -> None:
        seen.append(1)
        if len(seen) == 4:  # beyond the first checkpoint
            raise RuntimeError("killed")
        phase(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder.Recorder, "on_phase_end", killing)
    assert sslpl(*fast, "runtime.output_dir=third").code == 1
    assert len(server.runs) == 3
    token = json.loads((run_folder(Path("third")) / "provenance.json").read_text())["run_token"]
    monkeypatch.setattr(recorder.Recorder, "on_phase_end", phase)
    wandb.teardown()  # another process takes it over
    assert sslpl(*fast, "runtime.output_dir=third").code == 0
    assert len(server.runs) == 3
    resumed = server.runs[f"{first.config['config_id']}-{token}"]
    assert [line["_step"] for line in resumed.lines] == [line["_step"] for line in first.lines]
    assert len(cycles_once(resumed)) == len(resumed.lines)


@pytest.mark.slow
def test_a_run_whose_wandb_process_is_killed_ends_well_and_sends_everything(
    tmp_path: Path,
    server: WandbServer,  # noqa: F811
) -> None:
    place = [f"runtime.output_dir={tmp_path / 'outputs'}", "training.epochs=60"]
    command = [sys.executable, "run.py", *RUN, *place]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 30
        while not any(seen.lines for seen in server.runs.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-P", str(run.pid), "-f", "wandb-core"], capture_output=True, text=True)
        os.kill(int(found.stdout), signal.SIGKILL)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    (line,) = err.splitlines()
    assert re.fullmatch(r"W&B: its own process ended \(.*\), and was started again; the run's files are .*", line)
    (sent,) = server.runs.values()
    assert len([row for row in sent.lines if "train/loss" in row]) == 120
    assert len(cycles_once(sent)) == len(sent.lines)
    assert sent.exit_code == 0


def cycles_once(run: FakeRun) -> set[int]:
    return {line["_step"] for line in run.lines}


@pytest.mark.slow
def test_runs_of_a_group_differ_in_the_seed_alone(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
) -> None:
    fast = [*RUN, "method=random", "training.epochs=1"]
    for others in (["seed=1"], ["seed=2"], ["training.epochs=2"], ["budget.initial=30"], ["backbone.dropout=0.1"]):
        assert sslpl(*fast, *others).code == 0
    groups = [run.upsert["groupName"] for run in server.runs.values()]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 4
    assert all(group.startswith("digits/random/") for group in groups)


@pytest.mark.parametrize("failure", [None, 500])
def test_without_a_server_the_files_are_complete(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    failure: int | None,
) -> None:
    server.failure = failure
    if failure is None:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = sslpl(*RUN)
    assert done.code == 0
    assert done.err.startswith("W&B: ")
    assert done.err.count("\n") == 1
    assert len((run_folder(Path("outputs")) / "metrics.csv").read_text().splitlines()) == 3


def test_a_run_that_an_agent_started_is_that_of_its_sweep(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"SWEEP_ID": "sw33p", "ENTITY": ENTITY, "PROJECT": "of_the_sweep", "SWEEP_PARAM_PATH": "params.yaml"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_RUN_ID", "firstrun")
    Path("params.yaml").write_text("wandb_version: 1\nseed:\n  value: 0\nssl:\n  value: pseudo_label_soft\n")
    first = sslpl(*RUN, "ssl=pseudo_label_soft")
    assert (first.code, first.err) == (0, "")
    summary = json.loads((run_folder() / "summary.json").read_text())
    wandb.teardown()  # another process
    monkeypatch.setenv("WANDB_RUN_ID", "secondrun")
    second = sslpl(*RUN, "ssl=pseudo_label_soft")
    assert (second.code, second.err) == (0, "")
    assert "finished already" in second.out
    assert set(server.runs) == {"firstrun", "secondrun"}
    for run_id, run in server.runs.items():  # the same config again: nothing is run, but the sweep is told
        assert (run.upsert["sweep"], run.upsert["entity"], run.upsert["project"]) == ("sw33p", ENTITY, "of_the_sweep")
        assert run.summary["aubc"] == pytest.approx(summary["aubc"])
        assert run.summary["final_accuracy"] == summary["final_accuracy"]
        assert [line["test/accuracy"] for line in cycles(server, run_id)] == summary["test_accuracy"]
        assert [line["labeled"] for line in cycles(server, run_id)] == [24, 48]
        assert run.exit_code == 0
        assert run.config["dataset_name"] == "digits"


def test_without_a_sweep_a_run_has_its_own_id(
    sslpl: Command,
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "somebodys")
    assert sslpl(*RUN, "method=random").code == 0
    (run_id,) = server.runs
    assert run_folder().name == f"seed0-{run_id.partition('-')[0]}"
    assert server.runs[run_id].config["setting"] == read_run(run_folder()).setting
