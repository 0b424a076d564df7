"""Several runs of a sweep that take turns in one process; kills of real processes are in check_launchers.py."""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, Result, timeless
from hydra.utils import instantiate
from test_identity import config_of

from sslpl.config.build import build_setup
from sslpl.data import sharing
from sslpl.learn.cuda_graphs import CapturedSteps
from sslpl.recording.recorder import Recorder
from sslpl.run.interleaved import InterleavedRuns
from sslpl.seeds import seeded_draws
from sslpl.setup import Setup
from sslpl.turns import ALONE, Turns

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
RUNS = [*TINY, "budget.cycles=2", "backbone.dropout=0.2"]  # masks are drawn from the generators that all runs share
RANDOM = [*RUNS, "method=random"]
INTERLEAVED = ["-m", "hydra/launcher=interleaved"]


def results(root: str) -> dict[str, tuple[Any, bytes, bytes]]:
    """Returns by run what equal runs have in common: metrics without times, selections and weights."""
    folders = [path.parent for path in Path(root).glob("**/status.json")]
    return {
        folder.name: (
            timeless(folder),
            (folder / "queries.csv").read_bytes(),
            (folder / "checkpoint/weights.pt").read_bytes(),
        )
        for folder in folders
    }


def states(root: str = "outputs") -> dict[str, str]:
    """Returns the state of each run by the start of its folder's name."""
    found = {path.parent.name: json.loads(path.read_text()) for path in Path(root).glob("**/status.json")}
    return {name.partition("-")[0]: status["state"] for name, status in found.items()}


@pytest.fixture
def steps(monkeypatch: Patch) -> list[str]:
    """Records the run of each step, by the start of its folder's name."""
    recorded: list[str] = []
    on_step = Recorder.on_step

    def record(self: Recorder, *arguments: Any) -> None:
        recorded.append(self.run.name.partition("-")[0])
        on_step(self, *arguments)

    monkeypatch.setattr(Recorder, "on_step", record)
    return recorded


def test_interleaved_runs_equal_single_ones(sslpl: Command, steps: list[str]) -> None:
    for seed in range(3):
        assert sslpl(*RUNS, f"seed={seed}", "runtime.output_dir=single").code == 0
    steps.clear()
    sweep = [*INTERLEAVED, *RUNS, "seed=0,1,2", "hydra.launcher.at_once=2"]
    done = sslpl(*sweep)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "3 finished"
    assert len(expected := results("single")) == 3
    assert results("outputs") == expected
    assert steps[:4] == ["seed0", "seed1", "seed0", "seed1"]
    assert steps[-2:] == ["seed2", "seed2"]  # it has taken the place of the first run to end
    assert "seed2" not in steps[: steps.index("seed2")]
    recorded = [json.loads(path.read_text())["interleaved"] for path in Path().glob("*/**/provenance.json")]
    assert sorted(recorded) == [1, 1, 1, 2, 2, 2]
    again = sslpl(*sweep)
    assert again.code == 0
    assert again.out.splitlines()[-1] == "3 skipped"


def test_an_error_ends_its_own_run_alone(sslpl: Command, monkeypatch: Patch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no entropy today")

    monkeypatch.setattr("sslpl.query.entropy", broken)
    done = sslpl(*INTERLEAVED, *RUNS, "method=random,entropy", "budget.initial=24,2000", "runtime.progress=plain")
    assert done.code == 2
    lines = sorted(done.err.splitlines())
    assert lines[0] == "sslpl: RuntimeError: no entropy today"
    assert ["the pool has 1,437 images: lower budget.initial" in line for line in lines] == [False, True, True]
    assert done.out.splitlines()[-1] == "1 finished, 3 failed"
    assert "4 of 4  finished  " in done.out  # after those that failed
    assert "random/seed0-" in done.out  # each line begins with the name of its run
    second = sslpl(*INTERLEAVED, *RUNS, "method=random,entropy")
    assert second.out.splitlines()[-1] == "1 skipped, 1 failed"


def test_a_signal_saves_every_run(sslpl: Command, steps: list[str], monkeypatch: Patch) -> None:
    on_step = Recorder.on_step

    def interrupt(self: Recorder, *arguments: Any) -> None:
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            while self.setup.turns.signal is None:  # until the main thread has handled it
                time.sleep(0.001)
        on_step(self, *arguments)

    sweep = [*INTERLEAVED, *RANDOM, "seed=0,1,2", "hydra.launcher.at_once=2"]
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Recorder, "on_step", interrupt)
    stopped = sslpl(*sweep)
    assert stopped.code == 128 + signal.SIGTERM
    assert stopped.out.splitlines()[-1] == "3 interrupted"
    assert "SIGTERM: every run finishes its current step, then saves" in stopped.out
    assert "Traceback" not in stopped.err
    assert 8 <= len(steps) <= 9  # each of the two finishes the step that it had begun, and the third does not start
    assert states() == {"seed0": "interrupted", "seed1": "interrupted"}
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.setattr(Recorder, "on_step", on_step)
    resumed = sslpl(*sweep)
    assert resumed.code == 0
    assert resumed.out.splitlines()[-1] == "2 resumed, 1 finished"
    for seed in range(3):
        assert sslpl(*RANDOM, f"seed={seed}", "runtime.output_dir=single").code == 0
    assert results("outputs") == results("single")


@pytest.mark.parametrize("count", ["0", "33", "1.5", "true", "many"])
def test_the_number_of_runs_at_a_time_is_checked(sslpl: Command, count: str) -> None:
    done = sslpl(*INTERLEAVED, *RUNS, "seed=0,1", f"hydra.launcher.at_once={count}")
    assert done.code == 2
    assert done.err.lower() == f"sslpl: hydra.launcher.at_once={count}: must be a whole number from 1 to 32\n"
    assert list(Path().iterdir()) == []


def test_runs_on_the_same_images_hold_them_once() -> None:
    def images_of(*overrides: str) -> Setup:
        config = config_of(*TINY, *overrides)[0]
        return build_setup(config, instantiate(config["runtime"]))

    first, other_seed, other_images = (
        images_of(),
        images_of("seed=1"),
        images_of("dataset.imbalance=stepped", "dataset.imbalance_ratio=5"),
    )
    assert other_seed.dataset.train is first.dataset.train
    assert other_seed.dataset.test is first.dataset.test
    assert first.dataset.train is not first.dataset.test
    assert other_images.dataset.train is not first.dataset.train
    gc.collect()  # what other tests have left
    held = len(sharing._held)
    del first
    gc.collect()
    assert len(sharing._held) == held  # the other seed needs them
    del other_seed
    gc.collect()
    assert len(sharing._held) == held - 2


def in_turn(*workers: Callable[[Turns], None]) -> Turns:
    """Runs each worker in a thread that takes turns with the others; the first one starts."""
    turns = Turns(len(workers))

    def work(worker: Callable[[Turns], None]) -> None:
        with suppress(SystemExit), turns.joined():
            worker(turns)

    with turns.joined():  # until all have joined
        threads = [Thread(target=work, args=(worker,)) for worker in workers]
        for position, thread in enumerate(threads, start=2):
            thread.start()
            while len(turns._ring) < position:
                time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return turns


class TestTurns:
    def test_they_go_round(self) -> None:
        seen = []

        def worker(name: str, count: int) -> Callable[[Turns], None]:
            def work(turns: Turns) -> None:
                for _ in range(count):
                    seen.append(name)
                    turns.pass_on()

            return work

        in_turn(worker("a", 3), worker("b", 1), worker("c", 2))
        assert "".join(seen) == "abcaca"

    def test_a_run_that_waits_is_passed_over(self) -> None:
        seen = []

        def waiting(turns: Turns) -> None:
            turns.pass_on(lambda: seen.count("b") == 3)
            seen.append("a")

        def working(turns: Turns) -> None:
            for _ in range(5):
                seen.append("b")
                turns.pass_on()

        in_turn(waiting, working)
        assert "".join(seen) == "bbbabb"

    def test_a_run_whose_wait_fails_meets_the_error_itself(self) -> None:
        seen = []

        def failing(turns: Turns) -> None:
            turns.pass_on(lambda: bool(1 // 0))
            seen.append("a")

        def working(turns: Turns) -> None:
            turns.pass_on()
            seen.append("b")

        in_turn(failing, working)
        assert seen == ["a", "b"]

    def test_all_wait_for_something_that_takes_time(self) -> None:
        looks = []

        def later() -> bool:
            looks.append(1)
            return len(looks) > 50

        in_turn(lambda turns: turns.pass_on(later), lambda turns: turns.pass_on(later))
        assert len(looks) > 50

    def test_the_others_work_while_one_is_away(self) -> None:
        seen, events = [], SimpleNamespace(done=False)

        def away(turns: Turns) -> None:
            torch.manual_seed(5)
            expected = torch.default_generator.get_state()
            with turns.away():
                while not events.done:
                    time.sleep(0.001)
            assert torch.equal(torch.default_generator.get_state(), expected)
            seen.append("back")

        def working(turns: Turns) -> None:
            torch.manual_seed(6)
            for _ in range(3):
                turns.pass_on()
            events.done = True

        in_turn(away, working)
        assert seen == ["back"]

    def test_an_error_hands_the_turn_on(self) -> None:
        seen = []

        def failing(turns: Turns) -> None:
            turns.pass_on()
            sys.exit()

        in_turn(failing, lambda turns: (turns.pass_on(), seen.append("b"))[1])
        assert seen == ["b"]

    def test_each_run_finds_the_global_state_as_it_left_it(self) -> None:
        draws: dict[int, list[float]] = {1: [], 2: []}
        before = torch.default_generator.get_state(), torch.get_num_threads(), torch.backends.cudnn.benchmark
        device = torch.device("cpu")

        def worker(seed: int) -> Callable[[Turns], None]:
            def work(turns: Turns) -> None:
                assert torch.equal(torch.default_generator.get_state(), before[0])
                assert torch.get_num_threads() == before[1]
                torch.set_num_threads(seed)
                torch.backends.cudnn.benchmark = seed == 1
                torch.use_deterministic_algorithms(seed == 2)
                torch.set_float32_matmul_precision("high" if seed == 1 else "highest")
                with seeded_draws(device, seed, "test"):
                    for _ in range(3):
                        turns.pass_on()
                        draws[seed].append(float(torch.rand(())))
                        assert torch.get_num_threads() == seed
                        assert torch.backends.cudnn.benchmark == (seed == 1)
                        assert torch.are_deterministic_algorithms_enabled() == (seed == 2)
                        assert torch.get_float32_matmul_precision() == ("high" if seed == 1 else "highest")

            return work

        try:
            in_turn(worker(1), worker(2))
        finally:
            torch.set_num_threads(before[1])
            torch.backends.cudnn.benchmark = before[2]
            torch.use_deterministic_algorithms(False)
            torch.set_float32_matmul_precision("highest")
        for seed, seen in draws.items():
            with seeded_draws(device, seed, "test"):
                assert seen == [float(torch.rand(())) for _ in range(3)]

    def test_a_single_run_is_never_kept_waiting(self) -> None:
        ALONE.pass_on(lambda: False)
        with ALONE.away():
            assert ALONE.wait_for(torch.ones(2)).tolist() == [1, 1]


class FakeStream:
    """Stands for a CUDA stream where there is no GPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device


def test_each_run_has_a_stream_while_it_works(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    entered: list[FakeStream] = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(entered.append(stream)))
    runs = InterleavedRuns({}, ALONE)
    with runs.own_stream("cuda:1"), runs.own_stream("auto"), runs.own_stream("cuda:1"), runs.own_stream("cpu"):
        pass
    with runs.own_stream("cuda:1"), runs.own_stream("cuda:1"):
        pass
    assert [stream.device for stream in entered[:3]] == [torch.device(name) for name in ("cuda:1", "cuda", "cuda:1")]
    assert len(entered) == 5  # none on the CPU
    assert entered[0] is not entered[2]
    assert {*entered[3:]} == {entered[0], entered[2]}  # the later runs take those of the earlier ones


def test_steps_are_captured_on_the_stream_of_their_run(monkeypatch: Patch) -> None:
    default, own = FakeStream(), FakeStream()
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: default)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)

    def captured_steps(current: FakeStream) -> CapturedSteps:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
        return CapturedSteps(lambda *_: torch.zeros(1), print)

    assert captured_steps(own).stream is own
    assert captured_steps(default).stream is not default  # which cannot be captured
