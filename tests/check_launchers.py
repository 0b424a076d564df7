"""Runs one sweep through every launcher and compares their results: python tests/check_launchers.py.

Eight runs on digits by Hydra's basic launcher, joblib, submitit_local, Ray and interleaved in one process must write
the same metrics.csv (without times), queries.csv and weights. Then a process of each but the first is killed with
signal 9 during its run, which is the command itself if the runs are interleaved: the same command must give the same
results, without training a finished run again. Finally one run receives Slurm's preemption signal, and sweeps are ended
by Ctrl-C and SIGTERM.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chaos import MEASURED_COLUMNS, ROOT, ProcessResult, finished_runs, state_counts

SWEEP = [
    "-m",
    *("method=entropy,random", "training.epochs=2", "training.batch_size=32", "budget.cycles=3"),
    *("tracker=none", "runtime.num_threads=1"),
]
JOBS, DISTURBED_JOBS = 8, 4  # runs of a sweep, and of one that is disturbed
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"],
    "interleaved": ["hydra/launcher=interleaved", "hydra.launcher.at_once=3"],
}
KILLED_CODES = {"interleaved": -signal.SIGKILL}  # exit codes after a kill, if not 1
NO_RETRIES = {"ray": ["hydra.launcher.ray.remote.max_retries=0"]}  # or Ray restarts a lost run itself
DEADLINE = 600  # seconds that one command may take


def start(folder: Path, options: list[str], jobs: int = DISTURBED_JOBS) -> subprocess.Popen[str]:
    """Starts a sweep in its own process group, as a terminal does."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *SWEEP, f"seed=range({jobs // 2})", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> ProcessResult:
    """Waits for the end of a sweep; returns its exit code and output."""
    try:
        log, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(f"launchers: no end within {DEADLINE} s\n{process.communicate()[0]}")
    return ProcessResult(process.returncode, log)


def run_to_end(folder: Path, options: list[str], jobs: int = DISTURBED_JOBS) -> ProcessResult:
    """Runs a sweep to its end."""
    return finish(start(folder, options, jobs))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads what equal sweeps have in common, by run."""
    found = {}
    for status in sorted(folder.glob("outputs/*/*/*/status.json")):
        run = status.parent
        with (run / "metrics.csv").open() as file:
            rows = [{k: v for k, v in row.items() if not k.endswith(MEASURED_COLUMNS)} for row in csv.DictReader(file)]
        queries, weights = (run / "queries.csv").read_bytes(), (run / "checkpoint/weights.pt").read_bytes()
        state = json.loads(status.read_text())["state"]
        found[run.name] = {"metrics": rows, "queries": queries, "weights": weights, "state": state}
    return found


def running_process(sweep: subprocess.Popen[str], folder: Path, finished: int, cycle: int = 1) -> int:
    """Waits for a run in the given cycle and a number of finished runs; returns its process id."""
    start_time = time.monotonic()
    while sweep.poll() is None and time.monotonic() - start_time < DEADLINE:
        for path in folder.glob("outputs/*/*/*/status.json"):
            status = json.loads(path.read_text())
            if len(finished_runs(folder)) >= finished and status["state"] == "running" and status.get("cycle") == cycle:
                return int(status["process"])
        time.sleep(0.01)
    if sweep.poll() is None:
        os.killpg(sweep.pid, signal.SIGKILL)
    sys.exit(f"launchers: no run started\n{sweep.communicate()[0]}")


def check_undisturbed(folder: Path, launcher: str, expected: dict[str, dict[str, Any]]) -> bool:
    """True if an undisturbed sweep writes the same files as the basic launcher."""
    start_time = time.monotonic()
    result = run_to_end(folder, LAUNCHERS[launcher], JOBS)
    seconds = time.monotonic() - start_time
    same = result.code == 0 and results(folder) == expected and state_counts(result.log) == {"finished": JOBS}
    print(f"{'identical' if same else 'DIFFERENT'}  {launcher}: {JOBS} runs, {seconds:.0f} s", flush=True)
    if not same:
        print(result.log[-6000:])
    return same


def check_killed(folder: Path, launcher: str, expected: dict[str, dict[str, Any]]) -> bool:
    """True if the same command completes a sweep after a process was killed, without training a finished run again."""
    options = [*LAUNCHERS[launcher], *NO_RETRIES.get(launcher, [])]
    process = start(folder, options)
    os.kill(running_process(process, folder, finished=1), signal.SIGKILL)
    first = finish(process)
    before = finished_runs(folder)
    second = run_to_end(folder, options)
    counts, after = state_counts(second.log), finished_runs(folder)
    skipped_finished = all(after[run] == written for run, written in before.items()) and counts["skipped"] == len(
        before
    )
    passed = first.code == KILLED_CODES.get(launcher, 1) and len(before) < DISTURBED_JOBS and counts["resumed"] >= 1
    passed = passed and second.code == 0 and skipped_finished and results(folder) == expected
    message = f"{len(before)} finished, exit code {first.code}; the same command: {dict(counts)}"
    print(f"{'identical' if passed else 'DIFFERENT'}  {launcher}, one process killed: {message}", flush=True)
    if not passed:
        print(first.log[-4000:], second.log[-4000:], sep="\n---\n")
    return passed


def check_interrupted(
    folder: Path, launcher: str, expected: dict[str, dict[str, Any]], signum: signal.Signals = signal.SIGINT
) -> bool:
    """True if a signal to the whole process group, by default Ctrl-C, saves and ends every run, and the same command
    resumes."""
    process = start(folder, LAUNCHERS[launcher])
    running_process(process, folder, finished=0, cycle=0)  # later, further runs would be finished when all have stopped
    os.killpg(process.pid, signum)
    first = finish(process)
    before = finished_runs(folder)
    unfinished = [path.parent for path in folder.glob("outputs/*/*/*/status.json") if path.parent.name not in before]
    saved = all(json.loads((run / "status.json").read_text())["state"] == "interrupted" for run in unfinished)
    second = run_to_end(folder, LAUNCHERS[launcher])
    counts = state_counts(second.log)
    passed = (
        first.code == 128 + signum
        and saved
        and len(before) < DISTURBED_JOBS
        and state_counts(first.log)["finished"] == len(before)
        and "Traceback" not in first.log
    )
    passed = passed and second.code == 0 and results(folder) == expected
    passed = passed and (counts["skipped"], counts["resumed"]) == (len(before), len(unfinished))
    message = f"{dict(state_counts(first.log))}, then {dict(counts)}"
    print(f"{'identical' if passed else 'DIFFERENT'}  {launcher}, {signum.name}: {message}", flush=True)
    if not passed:
        print(first.log[-4000:], second.log[-4000:], sep="\n---\n")
    return passed


def check_preempted(folder: Path, expected: dict[str, dict[str, Any]]) -> bool:
    """True if a run that receives submitit's preemption signal is saved, requeued and resumed in the same sweep."""
    process = start(folder, LAUNCHERS["submitit_local"])
    os.kill(running_process(process, folder, finished=1), signal.SIGUSR2)
    result = finish(process)
    logs = "".join(path.read_text() for path in folder.glob("outputs/.launcher/**/*.out"))
    passed = result.code == 0 and results(folder) == expected and "SIGUSR2: finishing the current step" in logs
    passed = passed and state_counts(result.log) == {"finished": DISTURBED_JOBS - 1, "resumed": 1}
    print(
        f"{'identical' if passed else 'DIFFERENT'}  submitit_local, preempted: {dict(state_counts(result.log))}",
        flush=True,
    )
    if not passed:
        print(result.log[-4000:], logs[-4000:], sep="\n---\n")
    return passed


def main() -> None:
    """Runs all checks; exits with 0 if all launchers write the same files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LAUNCHERS, help="one launcher, compared with the basic one")
    only = parser.parse_args().only
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or runs started from a background shell would ignore it
    chosen = [only] if only else [*LAUNCHERS]
    start_time = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-launchers-") as name:
        scratch = Path(name)
        basic = run_to_end(scratch / "basic", [], JOBS)
        if basic.code != 0:
            sys.exit(f"launchers: the basic launcher ended with {basic.code}\n{basic.log}")
        expected = results(scratch / "basic")
        expected_few = {run: files for run, files in expected.items() if run.startswith(("seed0", "seed1"))}
        print(f"basic: {len(expected)} runs, {time.monotonic() - start_time:.0f} s", flush=True)
        checks: list[Callable[[], bool]] = []
        for launcher in chosen:
            checks += [lambda launcher=launcher: check_undisturbed(scratch / launcher, launcher, expected)]
            checks += [lambda launcher=launcher: check_killed(scratch / f"{launcher}-killed", launcher, expected_few)]
        if "joblib" in chosen:
            checks += [lambda: check_interrupted(scratch / "interrupted", "joblib", expected_few)]
        if "interleaved" in chosen:
            for signum in (signal.SIGINT, signal.SIGTERM):
                folder = scratch / f"interleaved-{signum.name}"
                checks += [
                    lambda folder=folder, signum=signum: check_interrupted(folder, "interleaved", expected_few, signum)
                ]
        if "submitit_local" in chosen:
            checks += [lambda: check_preempted(scratch / "preempted", expected_few)]
        passed = [len(expected) == JOBS, *(check() for check in checks)]
    verdict = "all write the same files" if all(passed) else "THEY DIFFER"
    print(f"launchers: {verdict} ({time.monotonic() - start_time:.0f} s)")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
