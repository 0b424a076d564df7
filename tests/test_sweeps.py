"""Sweeps: only unfinished runs are executed, each by one process, and a table shows the result of each."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pytest
import yaml
from conftest import TINY, Result, run_folder
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sslpl import query
from sslpl.config.plans import Plan
from sslpl.phases import train
from sslpl.recording import lock
from sslpl.run import jobs
from sslpl.run.errors import ErrorReport
from sslpl.run.outcome import Outcome, Slot

Command = Callable[..., Result]
SWEEP = ("-m", *TINY, "method=entropy,random", "seed=0,1")


def states() -> dict[str, str]:
    found = {}
    for path in Path("outputs").glob("**/status.json"):
        method_name, run = path.parts[-3:-1]
        found[f"{method_name} {run.partition('-')[0]}"] = json.loads(path.read_text())["state"]
    return found


def test_a_sweep_is_resumed(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = query.entropy
    calls = []

    def failing_once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no entropy today")
        return entropy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(query, "entropy", failing_once)
    first = sslpl(*SWEEP)
    assert first.code == 1
    assert first.err == "sslpl: RuntimeError: no entropy today\n"
    assert states() == {
        "entropy seed0": "failed", "entropy seed1": "finished", "random seed0": "finished", "random seed1": "finished",
    }  # fmt: skip
    lines = first.out.splitlines()
    assert lines[-1] == "1 failed, 3 finished"
    (failed,) = [line for line in lines if " failed " in line]
    assert "outputs/digits/entropy/seed0-" in failed
    weights = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("weights.pt")}
    second = sslpl(*SWEEP)
    assert (second.code, second.err) == (0, "")
    assert second.out.splitlines()[-1] == "1 resumed, 3 skipped"  # from its last checkpoint, not from its start
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    monkeypatch.setattr(train, "joint_step", None)
    third = sslpl(*SWEEP)
    assert (third.code, third.out.splitlines()[-1]) == (0, "4 skipped")
    assert third.out.count("finished already") == 4


def test_a_single_run_prints_no_table(sslpl: Command) -> None:
    assert "skipped" not in sslpl(*TINY, "method=random").out


def test_errors_of_some_jobs_do_not_stop_the_others(sslpl: Command) -> None:
    done = sslpl("-m", *TINY, "method=random", "budget.cycles=2,500,3")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "lower budget.initial" in done.err
    assert done.out.splitlines()[-1] == "2 finished, 1 failed"


def test_a_misspelled_option_of_a_sweep_runs_nothing(sslpl: Command) -> None:
    done = sslpl("-m", *TINY, "method=random,entropie")
    assert done.code == 2
    assert done.err == "sslpl: method=entropie: no such option; did you mean entropy? (" + done.err.partition("(")[2]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("sweep", [False, True])
def test_a_run_of_another_process_is_waited_for_and_taken_over(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    assert sslpl(*TINY, "method=random", "budget.cycles=1").code == 0
    folder = run_folder()
    status = folder / "status.json"
    status.write_text('{"state": "running", "process": 7, "host": "node7"}')  # as a killed process leaves it
    owner = (folder / lock.NAME).open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)  # as by another process: a lock is of an open file
    wait_for_other, release = jobs.wait_for_other, Timer(1.0, owner.close)

    def releasing(plan: Plan, slot: Slot) -> Outcome | ErrorReport:
        release.start()
        return wait_for_other(plan, slot)

    monkeypatch.setattr(jobs, "wait_for_other", releasing)
    overrides = [option for option in TINY if not option.startswith("budget.cycles")]
    arguments = ("-m", *overrides, "budget.cycles=1,2") if sweep else (*overrides, "budget.cycles=1")
    done = sslpl(*arguments, "method=random")
    release.join()
    assert done.code == 0, done.err
    assert f"waiting for process 7 on node7, which is running {folder}" in done.out
    assert json.loads(status.read_text())["state"] == "finished"
    if sweep:
        assert done.out.splitlines()[-1] == "2 finished"
    assert not list(Path("outputs").rglob(lock.NAME))


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with lock.run_lock(tmp_path / "run", wait=False) as first, lock.run_lock(tmp_path / "run", wait=False) as second:
        assert (first, second) == (True, False)
    with lock.run_lock(tmp_path / "run", wait=False) as third:
        assert third
    lock.remove_lock(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


SEARCH = (
    *("-m", *TINY, "hydra/sweeper=optuna", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=0"),
    *("hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"),
    *("hydra.sweep.dir=outputs", "hydra.sweeper.max_failure_rate=1.0", "budget.cycles=1"),
)


def areas() -> list[float]:
    return [json.loads(path.read_text())["aubc"] for path in Path("outputs").glob("**/summary.json")]


@pytest.mark.slow
def test_a_search_gets_the_results_of_finished_runs_again(sslpl: Command) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (*SEARCH, "training.finetune_rate=interval(0.001,0.1)")
    first = sslpl(*search)
    assert (first.code, first.out.splitlines()[-1]) == (0, "3 finished")
    best = Path("outputs/optimization_results.yaml")
    first_best = best.read_text()
    assert yaml.safe_load(first_best)["best_value"] == max(areas())
    best.unlink()
    again = sslpl(*search)
    assert (again.code, again.out.splitlines()[-1]) == (0, "3 skipped")  # the same trials, drawn from the same areas
    assert best.read_text() == first_best
    assert [path.name for path in Path().iterdir()] == ["outputs"]


def test_a_search_continues_after_an_error_and_reports_it(sslpl: Command) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sslpl(*SEARCH, "ssl.threshold=choice(1.5,0.7)")
    assert done.code == 2
    assert [line for line in done.err.splitlines() if "ssl.threshold=1.5: must be less" in line]
    assert "Traceback" not in done.err
    counts = done.out.splitlines()[-1]
    assert "1 finished" in counts
    assert "failed" in counts
    assert yaml.safe_load(Path("outputs/optimization_results.yaml").read_text())["best_value"] == areas()[0]


@pytest.mark.slow
def test_a_search_without_any_result_prints_only_the_reasons(sslpl: Command) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sslpl(*SEARCH, "ssl.threshold=1.5", "training.rate=interval(0.01,0.1)")
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("sslpl: ")]
    assert lines == ["sslpl: ssl.threshold=1.5: must be less than or equal to 1"] * 3
    estimated = sslpl(*SEARCH, "training.rate=interval(0.01,0.1)", "runtime.dry_run=true")
    assert (estimated.code, estimated.out.splitlines()[-1]) == (0, "3 estimated")


def test_an_internal_error_in_a_search_is_reported(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def failing(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(jobs, "group_choices", failing)
    done = sslpl(*SEARCH, "training.rate=interval(0.01,0.1)")
    assert done.code == 1
    assert [line for line in done.err.splitlines() if line.startswith("sslpl: ")] == [
        "sslpl: RuntimeError: a defect"
    ] * 3


@pytest.mark.slow
def test_a_search_waits_for_a_run_of_another_process(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (*SEARCH, "hydra.sweeper.n_trials=2", "training.finetune_rate=choice(0.01)")
    assert sslpl(*search).code == 0
    (run_folder() / "status.json").write_text('{"state": "running", "process": 7, "host": "node7"}')
    owner = (run_folder() / lock.NAME).open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)
    wait_for_other = jobs.wait_for_other

    def releasing(plan: Plan, slot: Slot) -> Outcome:
        owner.close()
        return wait_for_other(plan, slot)

    monkeypatch.setattr(jobs, "wait_for_other", releasing)
    done = sslpl(*search)
    assert done.code == 0, done.err
    assert "waiting for process 7 on node7" in done.out
    assert done.out.index("waiting") < done.out.index("finished already")  # not deferred: the next trial depends on it
    assert yaml.safe_load(Path("outputs/optimization_results.yaml").read_text())["best_value"] == areas()[0]


def test_a_search_without_its_package_says_what_to_install(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Plugins.instance()  # loads the installed plugins
    repo = ConfigStore.instance().repo
    others = {name: node for name, node in repo["hydra"]["sweeper"].items() if name != "optuna.yaml"}
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**repo, "hydra": {**repo["hydra"], "sweeper": others}})
    done = sslpl("-cd", str(Path(__file__).parents[1] / "multirun_sweeps"), "-cn", "optuna")
    assert done.code == 2
    assert done.err == "sslpl: hydra/sweeper=optuna: is not installed; pip install hydra-optuna-sweeper\n"
