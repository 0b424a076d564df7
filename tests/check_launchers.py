"""Runs one sweep through every launcher and compares what they leave: python tests/check_launchers.py.

Eight runs on digits by Hydra's basic launcher, joblib, submitit_local and Ray must leave the same metrics.csv (times
aside), queries.csv and weights. Then a process of each of the last three is killed with signal 9 in the middle of its
run: the same command again must leave the same, with no finished run trained twice. At last one is told by Slurm's
signal to make room, and a sweep is ended by Ctrl-C.
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

from chaos import MEASURED, ROOT, Life, tally, trained

SWEEP = [
    "-m",
    *("method=entropy,random", "training.epochs=2", "training.batch_size=32", "budget.cycles=3"),
    *("tracker=none", "runtime.num_threads=1"),
]
JOBS, FEWER = 8, 4  # runs of a sweep, and of one that is disturbed
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"],
}
ENDURING = {"ray": ["hydra.launcher.ray.remote.max_retries=0"]}  # which else begins a lost run again by itself
DEADLINE = 600  # seconds that one command may take


def start(folder: Path, options: list[str], jobs: int = FEWER) -> subprocess.Popen[str]:
    """A sweep in a process group of its own, as a terminal would start it."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *SWEEP, f"seed=range({jobs // 2})", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> Life:
    """How a sweep ended."""
    try:
        log, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(f"launchers: no end within {DEADLINE} s\n{process.communicate()[0]}")
    return Life(process.returncode, log)


def live(folder: Path, options: list[str], jobs: int = FEWER) -> Life:
    """Runs a sweep to its end."""
    return finish(start(folder, options, jobs))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What two equal sweeps must share, by run."""
    found = {}
    for status in sorted(folder.glob("outputs/*/*/*/status.json")):
        run = status.parent
        with (run / "metrics.csv").open() as file:
            rows = [{k: v for k, v in row.items() if not k.endswith(MEASURED)} for row in csv.DictReader(file)]
        queries, weights = (run / "queries.csv").read_bytes(), (run / "checkpoint/weights.pt").read_bytes()
        state = json.loads(status.read_text())["state"]
        found[run.name] = {"metrics": rows, "queries": queries, "weights": weights, "state": state}
    return found


def under_way(sweep: subprocess.Popen[str], folder: Path, finished: int, cycle: int = 1) -> int:
    """The process of a run that is in this cycle, when so many runs are finished."""
    since = time.monotonic()
    while sweep.poll() is None and time.monotonic() - since < DEADLINE:
        for path in folder.glob("outputs/*/*/*/status.json"):
            status = json.loads(path.read_text())
            if len(trained(folder)) >= finished and status["state"] == "running" and status.get("cycle") == cycle:
                return int(status["process"])
        time.sleep(0.01)
    if sweep.poll() is None:
        os.killpg(sweep.pid, signal.SIGKILL)
    sys.exit(f"launchers: no run got under way\n{sweep.communicate()[0]}")


def compared(folder: Path, launcher: str, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether an undisturbed sweep leaves what the basic launcher leaves."""
    since = time.monotonic()
    life = live(folder, LAUNCHERS[launcher], JOBS)
    took = time.monotonic() - since
    same = life.code == 0 and results(folder) == expected and tally(life.log) == {"finished": JOBS}
    print(f"{'identical' if same else 'DIFFERENT'}  {launcher}: {JOBS} runs, {took:.0f} s", flush=True)
    if not same:
        print(life.log[-6000:])
    return same


def killed(folder: Path, launcher: str, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether the same command completes a sweep one of whose processes was killed, training nothing finished again."""
    options = [*LAUNCHERS[launcher], *ENDURING.get(launcher, [])]
    process = start(folder, options)
    os.kill(under_way(process, folder, finished=1), signal.SIGKILL)
    first = finish(process)
    before = trained(folder)
    second = live(folder, options)
    ends, after = tally(second.log), trained(folder)
    once = all(after[run] == at for run, at in before.items()) and ends["skipped"] == len(before)
    good = first.code == 1 and len(before) < FEWER and ends["resumed"] >= 1
    good = good and second.code == 0 and once and results(folder) == expected
    said = f"{len(before)} finished, exit code {first.code}; the same command: {dict(ends)}"
    print(f"{'identical' if good else 'DIFFERENT'}  {launcher}, one process killed: {said}", flush=True)
    if not good:
        print(first.log[-4000:], second.log[-4000:], sep="\n---\n")
    return good


def interrupted(folder: Path, launcher: str, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether Ctrl-C saves and ends every run, and the same command goes on."""
    process = start(folder, LAUNCHERS[launcher])
    under_way(process, folder, finished=0, cycle=0)  # a second passes before all have heard: those behind still wait
    os.killpg(process.pid, signal.SIGINT)
    first = finish(process)
    before = trained(folder)
    left = [path.parent for path in folder.glob("outputs/*/*/*/status.json") if path.parent.name not in before]
    saved = all(json.loads((run / "status.json").read_text())["state"] == "interrupted" for run in left)
    second = live(folder, LAUNCHERS[launcher])
    ends = tally(second.log)
    good = (
        first.code == 128 + signal.SIGINT
        and saved
        and len(before) < FEWER
        and tally(first.log)["finished"] == len(before)
        and "Traceback" not in first.log
    )
    good = good and second.code == 0 and results(folder) == expected
    good = good and (ends["skipped"], ends["resumed"]) == (len(before), len(left))
    said = f"{dict(tally(first.log))}, then {dict(ends)}"
    print(f"{'identical' if good else 'DIFFERENT'}  {launcher}, Ctrl-C: {said}", flush=True)
    if not good:
        print(first.log[-4000:], second.log[-4000:], sep="\n---\n")
    return good


def preempted(folder: Path, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether a run that submitit's signal tells to make room is saved, queued again and resumed in the same sweep."""
    process = start(folder, LAUNCHERS["submitit_local"])
    os.kill(under_way(process, folder, finished=1), signal.SIGUSR2)
    life = finish(process)
    logs = "".join(path.read_text() for path in folder.glob("outputs/.launcher/**/*.out"))
    good = life.code == 0 and results(folder) == expected and "SIGUSR2: finishing the current step" in logs
    good = good and tally(life.log) == {"finished": FEWER - 1, "resumed": 1}
    print(f"{'identical' if good else 'DIFFERENT'}  submitit_local, preempted: {dict(tally(life.log))}", flush=True)
    if not good:
        print(life.log[-4000:], logs[-4000:], sep="\n---\n")
    return good


def main() -> None:
    """Exit code 0 if all launchers leave the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LAUNCHERS, help="one launcher, beside the basic one")
    only = parser.parse_args().only
    chosen = [only] if only else [*LAUNCHERS]
    since = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-launchers-") as name:
        scratch = Path(name)
        basic = live(scratch / "basic", [], JOBS)
        if basic.code != 0:
            sys.exit(f"launchers: the basic launcher ended with {basic.code}\n{basic.log}")
        expected = results(scratch / "basic")
        few = {run: left for run, left in expected.items() if run.startswith(("seed0", "seed1"))}
        print(f"basic: {len(expected)} runs, {time.monotonic() - since:.0f} s", flush=True)
        checks: list[Callable[[], bool]] = []
        for each in chosen:
            checks += [lambda each=each: compared(scratch / each, each, expected)]
            checks += [lambda each=each: killed(scratch / f"{each}-killed", each, few)]
        if "joblib" in chosen:
            checks += [lambda: interrupted(scratch / "interrupted", "joblib", few)]
        if "submitit_local" in chosen:
            checks += [lambda: preempted(scratch / "preempted", few)]
        good = [len(expected) == JOBS, *(check() for check in checks)]
    print(f"launchers: {'all leave the same' if all(good) else 'THEY DIFFER'} ({time.monotonic() - since:.0f} s)")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
