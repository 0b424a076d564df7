"""Failures: full disks, damaged files, other versions, no memory, infinite losses. No work is lost."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless

from sslpl import provenance, query, state
from sslpl.clustering import linkage
from sslpl.config import build, identity
from sslpl.phases import train
from sslpl.recording import checkpoint, folder, recorder, terminal
from sslpl.run import execute

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
RUN = (*TINY, "method=entropy")


def status() -> dict[str, Any]:
    return json.loads((run_folder() / "status.json").read_text())


def raising(function: Callable[..., Any], call: int, error: BaseException) -> Callable[..., Any]:
    """Wraps a function so that it raises at one of its calls (from 1)."""
    calls = []

    def patched(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return function(*arguments, **options)

    return patched


@pytest.fixture
def interrupted_run(sslpl: Command, monkeypatch: Patch) -> Path:
    """Returns the folder of a run that was killed after its first cycle."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", raising(checkpoint.save, 9, Killed()))
        with pytest.raises(Killed):
            sslpl(*RUN, "runtime.checkpoint_minutes=0")
    return run_folder()


def uninterrupted_metrics(sslpl: Command) -> list[dict[str, str]]:
    assert sslpl(*RUN, "runtime.output_dir=reference").code == 0
    return timeless(run_folder(Path("reference")))


@pytest.mark.parametrize("call", [5, 14, 20])
def test_a_full_disk_ends_a_run_and_loses_nothing(sslpl: Command, monkeypatch: Patch, call: int) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "state.ckpt")
    calls, flush = [], os.fsync

    def fails_when_full(file: int) -> None:
        calls.append(1)
        if len(calls) >= call:  # from then on, also for the status
            raise full
        flush(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_when_full)
        done = sslpl(*RUN, "runtime.checkpoint_minutes=0")
    assert done.code == 1
    assert done.err == (
        "sslpl: No space left on device (state.ckpt): everything saved before is intact; rerun the same command to "
        "resume\n"
    )
    assert sslpl(*RUN).code == 0
    assert timeless(run_folder()) == uninterrupted_metrics(sslpl)
    assert not list(Path("outputs").rglob(".*"))


@pytest.mark.parametrize("damage", ["{", "", "[]", "null"])
def test_a_damaged_status_does_not_matter(sslpl: Command, interrupted_run: Path, damage: str) -> None:
    (interrupted_run / "status.json").write_text(damage)
    assert sslpl(*RUN).code == 0
    assert status()["state"] == "finished"


@pytest.mark.parametrize("file", ["config.yaml", "provenance.json"])
def test_a_folder_that_cannot_be_read_is_refused(sslpl: Command, interrupted_run: Path, file: str) -> None:
    (interrupted_run / file).write_text("{]")
    before = {path: path.read_bytes() for path in interrupted_run.rglob("*") if path.is_file()}
    done = sslpl(*RUN)
    assert done.code == 2
    assert "cannot be read; remove the folder, or choose another runtime.output_dir" in done.err
    assert done.err.count("\n") == 1
    assert {path: path.read_bytes() for path in interrupted_run.rglob("*") if path.is_file()} == before


def test_a_folder_of_another_config_is_refused(sslpl: Command, interrupted_run: Path) -> None:
    config = interrupted_run / "config.yaml"
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "its config.yaml is that of another run" in done.err


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_version_is_refused(
    sslpl: Command, interrupted_run: Path, monkeypatch: Patch, finished: bool
) -> None:
    if finished:
        assert sslpl(*RUN).code == 0
    monkeypatch.setattr(folder, "__version__", "9.0")
    done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "written by sslpl 0.2.0, this is 9.0" in done.err


def test_a_resumed_run_prints_what_has_changed(sslpl: Command, interrupted_run: Path, monkeypatch: Patch) -> None:
    original = provenance.provenance

    def moved(*arguments: Any) -> dict[str, Any]:
        return original(*arguments) | {"device_name": "another machine", "git": {"commit": "abc", "dirty": False}}

    monkeypatch.setattr(execute, "provenance", moved)
    done = sslpl(*RUN, "runtime.progress=plain")
    assert done.code == 0
    assert "it goes on with another machine" in done.out
    assert "this run began with git" in done.out


def test_a_run_resumed_on_a_cpu_of_another_precision_says_so(
    sslpl: Command, interrupted_run: Path, monkeypatch: Patch
) -> None:
    began = json.loads((interrupted_run / "provenance.json").read_text())["precision"]
    now = "float32" if began == "bfloat16" else "bfloat16"
    monkeypatch.setattr(build, "has_bfloat16", lambda _device: now == "bfloat16")
    done = sslpl(*RUN, "runtime.progress=plain")
    assert done.code == 0
    assert f"this run began with precision {began}: it goes on with {now}" in done.out


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
@pytest.mark.parametrize("both", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_damaged_checkpoint_is_reported_and_skipped(
    sslpl: Command, interrupted_run: Path, damage: str, both: bool
) -> None:
    names = [checkpoint.CURRENT, checkpoint.PREVIOUS][: 1 + both]
    for path in (interrupted_run / "checkpoint" / name for name in names):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"truncated": data[:-9], "flipped": bytes(data), "emptied": b""}[damage])
    done = sslpl(*RUN, "runtime.progress=plain")
    assert done.code == 0, done.err
    assert "is damaged (its checksum does not match)" in done.out
    assert ("resumed at" in done.out) != both
    assert timeless(run_folder()) == uninterrupted_metrics(sslpl)


def test_a_checkpoint_of_another_kind_is_refused(sslpl: Command, interrupted_run: Path) -> None:
    checkpoint.save(interrupted_run / "checkpoint", {"weights": torch.zeros(3)})
    done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "its checkpoint does not fit this run; remove the folder to start again" in done.err


def test_a_loss_that_is_not_finite_ends_a_run(sslpl: Command) -> None:
    done = sslpl(*RUN, "training.rate=1e30")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "the training loss is not finite in epoch" in done.err
    assert "lower training.rate" in done.err
    assert status()["state"] == "failed"
    assert status()["error"] in done.err
    assert "FloatingPointError" in (run_folder() / "error.log").read_text()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_device_without_memory_names_what_to_lower(
    sslpl: Command, interrupted_run: Path, monkeypatch: Patch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "joint_step", raising(train.joint_step, 3, error))
        done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "out of memory: lower training.batch_size, training.unlabeled_batch_limit or budget.candidates" in done.err
    assert sslpl(*RUN).code == 0
    assert timeless(run_folder()) == uninterrupted_metrics(sslpl)


def test_a_clustering_that_would_not_fit_is_not_started(sslpl: Command, monkeypatch: Patch) -> None:
    monkeypatch.setattr(linkage, "free_memory", lambda _: 10)  # after the check before the training
    done = sslpl(*TINY)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "lower budget.candidates" in done.err
    assert status()["phase"] == "query"


def test_a_strategy_that_selects_twice_ends_a_run(sslpl: Command, monkeypatch: Patch) -> None:
    monkeypatch.setattr(query, "top", lambda *_: torch.zeros(24, dtype=torch.int64))
    done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "selected an image twice" in done.err


def test_a_strategy_that_runs_out_of_memory_is_reported(sslpl: Command, monkeypatch: Patch) -> None:
    monkeypatch.setattr(query, "entropy", lambda *_: torch.empty(2**48))
    done = sslpl(*RUN)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "out of memory" in done.err


def test_a_folder_that_is_removed_is_written_again(sslpl: Command, monkeypatch: Patch) -> None:
    on_phase_end, removed = recorder.Recorder.on_phase_end, []

    def removing(self: recorder.Recorder, state: state.State) -> None:
        if state.cycle == 1 and not removed:
            removed.append(shutil.rmtree(self.run.folder))
        on_phase_end(self, state)

    monkeypatch.setattr(recorder.Recorder, "on_phase_end", removing)
    assert sslpl(*RUN).code == 0
    assert status()["state"] == "finished"
    assert timeless(run_folder()) == uninterrupted_metrics(sslpl)


@pytest.fixture
def set_hangup_handler() -> Iterator[Callable[[Any], None]]:
    """Sets the SIGHUP handler of this process, which may itself have been started with `nohup`."""
    original = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler) and None
    signal.signal(signal.SIGHUP, original)


def test_a_lost_terminal_saves_and_ends_with_its_code(
    sslpl: Command, monkeypatch: Patch, set_hangup_handler: Callable[[Any], None]
) -> None:
    on_step, steps = recorder.Recorder.on_step, []
    set_hangup_handler(signal.SIG_DFL)

    def lost(self: recorder.Recorder, *arguments: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        on_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_step", lost)
        assert sslpl(*RUN).code == 128 + signal.SIGHUP
    assert status()["state"] == "interrupted"
    assert sslpl(*RUN).code == 0


def test_a_terminal_that_is_ignored_as_by_nohup_stays_ignored(
    sslpl: Command, monkeypatch: Patch, set_hangup_handler: Callable[[Any], None]
) -> None:
    on_step = recorder.Recorder.on_step
    set_hangup_handler(signal.SIG_IGN)

    def hung_up(self: recorder.Recorder, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        on_step(self, *arguments)

    monkeypatch.setattr(recorder.Recorder, "on_step", hung_up)
    assert sslpl(*RUN).code == 0


def test_a_broken_pipe_does_not_stop_a_run(sslpl: Command, monkeypatch: Patch) -> None:
    silenced = []

    class BrokenTerminal(terminal.Terminal):
        class _File:
            encoding = "utf-8"

            def write(self, _: str) -> int:
                raise BrokenPipeError

            def flush(self) -> None:
                raise BrokenPipeError

            def isatty(self) -> bool:
                return False

        def __init__(self) -> None:
            super().__init__(file=self._File())  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "Terminal", BrokenTerminal)
    monkeypatch.setattr(terminal, "silence_stdout", lambda: silenced.append(1))
    done = sslpl(*RUN, "runtime.progress=plain")
    assert done.code == 0, done.err
    assert silenced
    assert status()["state"] == "finished"


@pytest.mark.parametrize("function", ["save_model", "discard"])
def test_a_kill_at_the_very_end_trains_nothing_again(sslpl: Command, monkeypatch: Patch, function: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, raising(getattr(checkpoint, function), 1, Killed()))
        with pytest.raises(Killed):
            sslpl(*RUN)
    monkeypatch.setattr(train, "joint_step", raising(train.joint_step, 1, AssertionError("trained again")))
    assert sslpl(*RUN).code == 0
    assert status()["state"] == "finished"
    assert [path.name for path in (run_folder() / "checkpoint").iterdir()] == ["weights.pt"]
    assert not list(run_folder().rglob(".*"))


def test_a_folder_of_another_config_with_the_same_id_is_refused(
    sslpl: Command, interrupted_run: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(identity, "run_id", lambda _: interrupted_run.name.removeprefix("seed0-"))
    monkeypatch.setattr(folder, "run_id", identity.run_id, raising=False)
    done = sslpl(*RUN, "training.rate=0.07")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "its config.yaml is that of another run" in done.err


def test_a_resumed_run_keeps_its_random_token(sslpl: Command, interrupted_run: Path) -> None:
    token = json.loads((interrupted_run / "provenance.json").read_text())["run_token"]
    assert len(token) == 8
    assert sslpl(*RUN).code == 0
    assert json.loads((interrupted_run / "provenance.json").read_text())["run_token"] == token
    assert sslpl(*RUN, "runtime.output_dir=other").code == 0
    other = json.loads((run_folder(Path("other")) / "provenance.json").read_text())["run_token"]
    assert other != token


def test_a_method_name_too_long_for_a_folder_is_shortened_and_kept(sslpl: Command, monkeypatch: Patch) -> None:
    from sslpl.report.read import read_runs

    original = identity.method_name
    monkeypatch.setattr(identity, "method_name", lambda *arguments: original(*arguments) + "+some.key=0.125" * 30)
    assert sslpl(*RUN).code == 0
    name = run_folder().parent.name
    assert len(name) == 255
    assert name.startswith("entropy+some.key=0.125+some.key=0.125")
    ((run,), damaged) = read_runs([Path("outputs")])
    assert (run.method_name, damaged) == ("entropy" + "+some.key=0.125" * 30, [])
    again = sslpl(*RUN)
    assert (again.code, again.out.startswith("finished already")) == (0, True)


def test_long_method_names_have_folders_of_their_own() -> None:
    from sslpl.config.identity import folder_name

    first, second = ("m" * 300 + end for end in "ab")
    assert folder_name(first) != folder_name(second)
    assert len(folder_name(first)) == 255
    assert folder_name("m" * 255) == "m" * 255


@pytest.mark.parametrize(
    ("code", "resumable"), [("ENOSPC", True), ("EIO", True), ("ENAMETOOLONG", False), ("EISDIR", False)]
)
def test_only_transient_errors_advise_to_rerun(code: str, resumable: bool) -> None:
    from sslpl.run.finish import failure_message

    number = getattr(errno, code)
    line = failure_message(OSError(number, os.strerror(number), "some/file"))
    assert line.startswith(f"{os.strerror(number)} (some/file)")
    assert line.endswith("rerun the same command to resume") == resumable
