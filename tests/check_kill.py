"""Kills a real run with signal 9 again and again and compares what it leaves with an undisturbed run: `make check`."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

ROOT = Path(__file__).parents[1]
OPTIONS = [
    "training.epochs=6",
    "training.finetune_epochs=3",
    "training.batch_size=32",
    "budget.cycles=4",
    "tracker=none",
    "runtime.checkpoint_minutes=0",
    "runtime.num_threads=1",
    "runtime.progress=plain",
]
KILLS = 6
DEADLINE = 600  # seconds that one life may take
MEASURED = ("_seconds", "_per_second", "_mib")  # columns of metrics.csv that no two runs share


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own, its lines in log.txt."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *OPTIONS], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def checkpoints(folder: Path) -> Iterator[int]:
    """How many checkpoints have been written since the first call, as often as one asks."""
    count, seen = 0, None
    while True:
        for path in folder.glob("outputs/**/state.ckpt"):
            try:
                now = (path.stat().st_ino, path.stat().st_mtime_ns)
            except FileNotFoundError:  # being replaced
                continue
            count, seen = (count + 1, now) if now != seen else (count, seen)
        yield count


def live_until(folder: Path, saved: int, pause: float) -> bool:
    """Kills a run `pause` seconds after some checkpoints; False if it ended before."""
    process, began = start(folder), time.monotonic()
    for count in checkpoints(folder):
        if (code := process.poll()) is not None:
            if code != 0:
                sys.exit(f"check_kill: a resumed run ended with {code}\n{(folder / 'log.txt').read_text()}")
            return False
        if time.monotonic() - began > DEADLINE:
            process.kill()
            sys.exit(f"check_kill: no {saved} checkpoints within {DEADLINE} s")
        if count > saved:
            break
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def finish(folder: Path) -> None:
    """Lets a run go on to its end."""
    if (code := start(folder).wait(DEADLINE)) != 0:
        sys.exit(f"check_kill: a run ended with {code}\n{(folder / 'log.txt').read_text()}")


def result(folder: Path) -> dict[str, object]:
    """All that two equal runs must share: the metrics that are not measured times, the ledger, weights, files."""
    (run,) = (path.parent for path in folder.glob("outputs/**/status.json"))
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.endswith(MEASURED)} for row in csv.DictReader(file)]
    networks = torch.load(run / "checkpoint/weights.pt", weights_only=True)
    return {
        "metrics.csv": rows,
        "queries.csv": (run / "queries.csv").read_bytes(),
        "status.json": (run / "status.json").read_text(),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
        "weights": [tensor.tolist() for network in networks.values() for tensor in network.values()],
    }


def main() -> None:
    """Ends with exit code 0 if the killed run left what the undisturbed one left."""
    began, moments = time.monotonic(), random.Random(0)
    with TemporaryDirectory(prefix="sslpl-kill-") as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        for folder in (whole, killed):
            folder.mkdir()
        finish(whole)
        kills = sum(live_until(killed, moments.randint(1, 16), moments.uniform(0, 0.05)) for _ in range(KILLS))
        finish(killed)
        log = (killed / "log.txt").read_text()
        resumed = [line for line in log.splitlines() if line.startswith("resumed")]
        print("\n".join(resumed))
        assert kills >= 3, f"only {kills} kills before the run was finished"
        assert len(resumed) >= 3, log
        expected, left = result(whole), result(killed)
        for what, value in expected.items():
            if left[what] != value:
                print(log, *(p.read_text() for p in killed.glob("outputs/**/error.log")))
                sys.exit(f"check_kill: {what} differs:\n{str(value)[:1000]}\n{str(left[what])[:1000]}")
    print(f"check_kill: killed {kills} times, the same results ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
