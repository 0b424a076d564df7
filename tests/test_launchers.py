"""Sweeps in other processes: planning, launching, sharing, results; real processes are in check_launchers.py."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, Result
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher

from sslpl.config.plans import Plan
from sslpl.recording.recorder import Recorder
from sslpl.recording.signals import Interrupted
from sslpl.recording.status import write_status
from sslpl.run import gpus, launchers
from sslpl.run.errors import CONF, ErrorReport
from sslpl.run.monitor import monitored
from sslpl.run.outcome import Outcome
from sslpl.run.worker import SweepCommand, run_sweep_job, stopping_on_request
from sslpl.runtime import Runtime, choose_gpu, threads_per_job
from sslpl.types import UserError

Command = Callable[..., Result]
LAUNCHERS = [path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")]


class InThisProcess(Launcher):
    """Replaces the plugins' launchers: runs all jobs in this process; fails after `max_jobs`."""

    launched: list[Sequence[str]] = []  # noqa: RUF012
    max_jobs = 100

    def __init__(self, **options: Any) -> None:
        assert "plugin" not in options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:  # noqa: ARG002
        returned = []
        for overrides in job_overrides:
            if len(self.launched) == self.max_jobs:
                raise RuntimeError("a worker was killed.\nIts log: none")
            self.launched.append(overrides)
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            returned.append(run_job(self.task, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context))
        return returned


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Records the overrides that reach a launcher running in this process."""
    monkeypatch.setattr(InThisProcess, "launched", [])
    monkeypatch.setattr(launchers, "get_class", lambda _: InThisProcess)
    return InThisProcess.launched


def test_a_sweep_goes_through_a_launcher(
    sslpl: Command, launched: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", "hydra/launcher=joblib", *TINY, "method=random", "budget.cycles=1")
    sweep = (*command, "seed=0,-1,1")
    monkeypatch.setattr(InThisProcess, "max_jobs", 1)
    first = sslpl(*sweep)
    bad, lost = first.err.splitlines()
    assert bad == "sslpl: seed=-1: must be greater than or equal to 0"
    assert lost == "sslpl: RuntimeError: a worker was killed; rerun the same command to resume"
    assert first.code == 2
    assert first.out.splitlines()[-1] == "1 finished, 2 failed"
    monkeypatch.setattr(InThisProcess, "max_jobs", 100)
    launched.clear()
    second = sslpl(*sweep)
    assert second.code == 2
    assert second.err == bad + "\n"
    assert second.out.splitlines()[-1] == "1 skipped, 1 failed, 1 finished"
    assert [overrides[-1] for overrides in launched] == ["seed=1"]  # finished runs are not launched again
    third = sslpl(*command, "budget.initial=24,2000")
    assert (third.code, third.err.count("\n")) == (2, 1)  # an error that only the run itself can find
    assert third.out.splitlines()[-1] == "1 skipped, 1 failed"
    assert [path.name for path in Path().iterdir()] == ["outputs"]
    assert [path.name for path in Path("outputs").iterdir()] == ["digits"]


def test_the_plugin_may_be_missing(sslpl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise ImportError(f"no module {path}")

    monkeypatch.setattr(launchers, "get_class", missing)
    done = sslpl("-m", "hydra/launcher=ray", *TINY, "seed=0,1")
    assert done.code == 2
    assert done.err.startswith("sslpl: hydra/launcher=ray: cannot be imported; pip install 'sslpl[launchers]'")
    assert done.err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_our_launchers_replace_those_of_the_plugins(sslpl: Command, launcher: str) -> None:
    done = sslpl(f"hydra/launcher={launcher}", "--cfg", "hydra", "-p", "hydra.launcher")
    assert (done.code, done.err) == (0, "")
    assert "_target_: hydra_plugins.sslpl_launcher.SweepLauncher" in done.out


def test_concurrent_runs() -> None:
    assert gpus.concurrent_runs(None, gpus=0, jobs_per_gpu=1, cores=8) == 8
    assert gpus.concurrent_runs(None, gpus=4, jobs_per_gpu=2, cores=64) == 8
    assert gpus.concurrent_runs(3, gpus=4, jobs_per_gpu=1, cores=64) == 3
    assert gpus.concurrent_runs(-1, gpus=4, jobs_per_gpu=1, cores=64) == 64
    assert [threads_per_job(jobs, 8) for jobs in (0, 1, 3, 8, 20)] == [8, 8, 2, 1, 1]


def test_runs_are_spread_over_gpus() -> None:
    assert gpus.gpu_slots([], 3) == []
    assert gpus.gpu_slots(["0", "1"], 1) == [(0, "0-0"), (1, "1-0")]
    assert gpus.gpu_slots(["0", "1"], 2) == [(0, "0-0"), (1, "1-0"), (0, "0-1"), (1, "1-1")]
    assert gpus.gpu_names({}, 2) == ["0", "1"]
    assert gpus.gpu_names({"CUDA_VISIBLE_DEVICES": "5, 7"}, 2) == ["5", "7"]
    assert gpus.gpu_names({"CUDA_VISIBLE_DEVICES": ""}, 0) == []


def test_a_gpu_has_as_many_runs_as_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    found = []

    def third() -> None:
        with gpus.reserve_gpu(2, 1, "third") as device:
            found.append(device)

    with gpus.reserve_gpu(2, 1, "first") as first:
        with gpus.reserve_gpu(2, 1, "second") as second, gpus.reserve_gpu(2, 2, "shared") as shared:
            assert (first, second, shared) == ("cuda:0", "cuda:1", "cuda:0")
            waiting = Thread(target=third)
            waiting.start()
            time.sleep(0.7)
            assert found == []
        waiting.join(timeout=10)
    assert found == ["cuda:1"]
    with gpus.reserve_gpu(0, 1, "none") as none:
        assert none is None


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of GPU locks, not yet created, in a temporary folder that all users share."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / f"sslpl-gpus-{os.getuid()}"


def test_locks_are_in_the_users_runtime_folder(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert gpus.lock_folder() == tmp_path / "runtime" / "sslpl-gpus"
    (tmp_path / "runtime").chmod(0o777)  # writable by everybody
    assert gpus.lock_folder() == shared_folder
    for missing in ("", str(tmp_path / "missing"), "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", missing)
        assert gpus.lock_folder() == shared_folder
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "runtime").chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError):  # neither folder belongs to this user
        gpus.lock_folder()


def test_locks_are_in_no_folder_of_other_users(shared_folder: Path, tmp_path: Path) -> None:
    assert gpus.lock_folder() == shared_folder
    assert shared_folder.stat().st_mode & 0o777 == 0o700
    assert gpus.lock_folder() == shared_folder
    shared_folder.chmod(0o755)
    with pytest.raises(
        UserError, match=r"sslpl-gpus-\d+: must be a private folder of this user \(mode 700\); remove it"
    ):
        gpus.lock_folder()
    shared_folder.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    shared_folder.symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="must be a private folder of this user"):
        gpus.lock_folder()
    shared_folder.unlink()
    shared_folder.touch(mode=0o700)
    with pytest.raises(UserError, match="must be a private folder of this user"), gpus.reserve_gpu(1, 1, "run"):
        raise AssertionError("a GPU without a lock")


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    choose_gpu(torch.device("cuda"))
    choose_gpu(torch.device("cuda:1"))
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(UserError, match=r"runtime\.device=cuda:2: must be below cuda:2"):
        choose_gpu(torch.device("cuda:2"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device was found"):
        Runtime(device="cuda:1").prepare()


def test_a_file_stops_a_job(tmp_path: Path) -> None:
    stop_file, handler = tmp_path / "stop", signal.getsignal(signal.SIGTERM)

    def job(seconds: float) -> None:
        with stopping_on_request(stop_file, "joblib"):
            stop_file.touch()
            time.sleep(seconds)
            raise AssertionError("not stopped")

    for seconds in (10, 0):  # during the job, and before it starts
        with pytest.raises(Interrupted):
            job(seconds)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan({"runtime": {"output_dir": str(tmp_path), "progress": "auto"}}, {}, "random", tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    with monitored([plan], "joblib") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        write_status(plan.folder, "interrupted")
        deadline = time.monotonic() + 10
        while not stop.file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (stop.signum, stop.file.exists()) == (signal.SIGINT, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    out = capsys.readouterr().out
    assert "SIGINT: every run finishes its current step, then saves" in out
    assert f"1 of 1  interrupted  {plan.folder}" in out


def test_the_signal_of_a_scheduler_is_handled_if_it_has_a_handler() -> None:
    received = []
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append(1))
    recorder = SimpleNamespace(signal=None, progress=SimpleNamespace(message=print))
    try:
        with Recorder.signals(recorder):  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGUSR2)
        assert (recorder.signal, received) == (signal.SIGUSR2, [])
        signal.raise_signal(signal.SIGUSR2)  # after saving, as `run_sweep_job` does
        assert received == [1]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_thread_handles_no_signal() -> None:
    completed = []

    def run() -> None:
        with Recorder.signals(SimpleNamespace(signal=None)):  # type: ignore[arg-type]
            completed.append(True)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert completed == [True]


def test_the_result_of_a_lost_process(tmp_path: Path) -> None:
    plan, lost = Plan({}, {}, "random", tmp_path / "run"), RuntimeError("killed. See the log")
    assert launchers.job_result(Outcome("resumed", 0.5), plan) == Outcome("resumed", 0.5)
    result = launchers.job_result(lost, plan)
    assert result == ErrorReport("RuntimeError: killed; rerun the same command to resume", 1)
    write_status(plan.folder, "failed", error="no luck")
    assert launchers.job_result(lost, plan) == ErrorReport("no luck", 1)
    write_status(plan.folder, "finished", aubc=0.25)
    assert launchers.job_result(lost, plan) == Outcome("finished", 0.25)


def test_a_job_can_be_pickled() -> None:
    import pickle
    from functools import partial

    task = partial(run_sweep_job, SweepCommand(("run.py",), 1, "joblib", "stop"))
    assert pickle.loads(pickle.dumps(task)).args == task.args


def test_ray_gets_no_local_options_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    init = {"address": None, "num_cpus": 2, "object_store_memory": 5, "logging_level": "warning"}
    local = launchers.launcher_options("ray", {"ray": {"init": init, "remote": {"num_cpus": 1}}}, jobs=2, gpus=0)
    assert local["ray"].init == {"num_cpus": 2, "object_store_memory": 5, "logging_level": "warning"}
    cluster = launchers.launcher_options(
        "ray", {"ray": {"init": init | {"address": "auto"}, "remote": {}}}, jobs=2, gpus=0
    )
    assert cluster["ray"].init == {"address": "auto", "object_store_memory": None, "logging_level": "warning"}
