"""Multiruns: only what is missing is run, each run by one process, and a table says what became of each."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pytest
from conftest import TINY, Result, run_folder

from sslpl import lock
from sslpl.learn import joint
from sslpl.query import scorers

Command = Callable[..., Result]
SWEEP = ("-m", *TINY, "method=entropy,random", "seed=0,1")


def states() -> dict[str, str]:
    found = {}
    for path in Path("outputs").glob("**/status.json"):
        label, run = path.parts[-3:-1]
        found[f"{label} {run.partition('-')[0]}"] = json.loads(path.read_text())["state"]
    return found


def test_a_sweep_is_gone_on_with(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = scorers.entropy
    calls = []

    def fragile(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no entropy today")
        return entropy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scorers, "entropy", fragile)
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
    assert second.out.splitlines()[-1] == "1 resumed, 3 skipped"  # from its last checkpoint, not from its beginning
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    monkeypatch.setattr(joint, "joint_step", None)
    third = sslpl(*SWEEP)
    assert (third.code, third.out.splitlines()[-1]) == (0, "4 skipped")
    assert third.out.count("finished already") == 4


def test_a_single_run_prints_no_table(sslpl: Command) -> None:
    assert "skipped" not in sslpl(*TINY, "method=random").out


def test_mistakes_of_some_jobs_do_not_stop_the_others(sslpl: Command) -> None:
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
def test_a_run_of_another_process_is_waited_for_and_taken_over(sslpl: Command, sweep: bool) -> None:
    assert sslpl(*TINY, "method=random", "budget.cycles=1").code == 0  # what is imported now makes no delay below
    folder = run_folder()
    status = folder / "status.json"
    status.write_text('{"state": "running", "process": 7, "host": "elsewhere"}')  # as its dead owner left it
    owner = (folder / lock.NAME).open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)  # as by another process: a lock is of an open file
    release = Timer(4.0, owner.close)
    release.start()
    once = [option for option in TINY if not option.startswith("budget.cycles")]
    jobs = ("-m", *once, "budget.cycles=1,2") if sweep else (*once, "budget.cycles=1")
    done = sslpl(*jobs, "method=random")
    release.join()
    assert done.code == 0, done.err
    assert f"waiting for process 7 on elsewhere, which is running {folder}" in done.out
    assert json.loads(status.read_text())["state"] == "finished"
    if sweep:
        assert done.out.splitlines()[-1] == "2 finished"
    assert not list(Path("outputs").rglob(lock.NAME))


def test_a_lock_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    with lock.owned(tmp_path / "run", wait=False) as first, lock.owned(tmp_path / "run", wait=False) as second:
        assert (first, second) == (True, False)
    with lock.owned(tmp_path / "run", wait=False) as third:
        assert third
    lock.forget(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
