"""Starts every file of multirun_sweeps by the real command, with next to no work in each run: `make check`.

Each sweep tries two values of the key that has most, and the first of every other; Fashion-MNIST is a few random images
in the published layout. W&B's sweep files are run by W&B's own agent, against a server on loopback.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from layouts import write_fashion_mnist
from wandb_server import ENTITY, wandb_server

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "multirun_sweeps"
LIMIT = 240.0  # seconds, on two idle cores
TRAINING = {"training.epochs": "1", "training.finetune_epochs": "1", "runtime.progress": "none"}
BUDGET = {"budget.cycles": "2", "budget.initial": "20", "budget.per_cycle": "10", "budget.candidates": "60"}
OWN_BUDGET = {"budgets": ("budget.cycles",), "ablation_candidates": (*BUDGET,)[:3], "ceiling_fashion": ()}
KEY = "0123456789abcdef0123456789abcdef01234567"


def tiny(name: str) -> dict[str, str]:
    """What makes a run of a sweep small; a sweep over budgets or candidates keeps these."""
    kept = OWN_BUDGET.get(name, BUDGET)
    return TRAINING | {key: value for key, value in BUDGET.items() if key in kept}


def tried(name: str) -> dict[str, str]:
    """Fewer values for the keys that a sweep tries: two of the one that has most, one of the others."""
    file = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["hydra"]["sweeper"]
    if "n_trials" in file:  # a search
        return {}
    values = {key: str(some).split(",") for key, some in file["params"].items()}
    longest = max(values, key=lambda key: (key not in tiny(name), len(values[key]), key != "seed"))
    two = [value for value in values[longest] if value != "full"]  # the ceiling has a budget of its own
    values = {key: some[:1] for key, some in values.items()} | {longest: [two[0], two[-1]][: len(two)]}
    return {key: ",".join(some) for key, some in values.items()} | {k: v for k, v in tiny(name).items() if k in values}


def jobs(name: str) -> int:
    """How many runs that makes."""
    return int(np.prod([value.count(",") + 1 for value in tried(name).values()])) if tried(name) else 2


def swept(name: str, folder: Path) -> str:
    """Runs a sweep into a folder; a line with what it took, AssertionError unless all of its runs are finished."""
    began, output = time.monotonic(), folder / name
    params = ", ".join(f"{key}: '{value}'" for key, value in tried(name).items())
    few = [f"hydra.sweeper.params={{{params}}}"] if params else ["hydra.sweeper.n_trials=2"]
    small = [f"{key}={value}" for key, value in tiny(name).items() if key not in tried(name)]
    where = [f"runtime.output_dir={output}", f"dataset.root={folder / 'files'}"]
    command = [sys.executable, str(ROOT / "run.py"), "-cd", str(SWEEPS), "-cn", name, *few, *small, *where]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{name} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    states = [json.loads(path.read_text())["state"] for path in output.glob("**/status.json")]
    assert states == ["finished"] * jobs(name), f"{name}: {states}, not {jobs(name)} finished\n{done.stdout}"
    return f"{name}: {len(states)} runs in {time.monotonic() - began:.0f} s"


def first_values(sweep: dict[str, Any]) -> dict[str, Any]:
    """The first or lowest value of each of the parameters of W&B's sweep."""
    return {
        key: one.get("value", one["values"][0] if "values" in one else one.get("min"))
        for key, one in sweep["parameters"].items()
    }


def by_agent(file: Path, folder: Path) -> str:
    """Has W&B's agent start one run of a sweep file; AssertionError unless the server gets its area."""
    began, output = time.monotonic(), folder / file.stem
    sweep = yaml.safe_load(file.read_text())
    args = first_values(sweep) | tiny(file.stem) | {"runtime.output_dir": str(output)}
    with wandb_server() as server:
        server.sweep = yaml.safe_dump(sweep)
        run = {"type": "run", "run_id": "agentrun", "program": "run.py"}
        server.commands = [run | {"args": {key: {"value": value} for key, value in args.items()}}]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_DIR": str(folder), "HOME": str(folder)}
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        command = [sys.executable, "-m", "wandb", "agent", "--count", "1", f"{ENTITY}/sslpl/sw33p"]
        done = subprocess.run(
            command, cwd=ROOT, env=env | own | {"PATH": path}, capture_output=True, text=True, timeout=LIMIT
        )
        said = f"\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{file.name}: the agent ended with {done.returncode}{said}"
        assert set(server.runs) == {"agentrun"}, f"{file.name}: not the sweep's run but {set(server.runs)}{said}"
        seen = server.runs["agentrun"]
        (summary,) = output.glob("**/summary.json")
        assert seen.upsert["sweep"] == "sw33p", f"{file.name}: outside of the sweep"
        area = json.loads(summary.read_text())[sweep["metric"]["name"]]
        assert abs(seen.summary[sweep["metric"]["name"]] - area) < 1e-6, f"{file.name}: {seen.summary}"
    return f"wandb/{file.stem}: a run of the sweep in {time.monotonic() - began:.0f} s"


def main() -> None:
    """Ends with exit code 0 if every sweep runs, two at a time."""
    os.environ |= {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-sweeps-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        write_fashion_mnist(folder / "files", 240, 40, np.random.default_rng(0))
        runs = [pool.submit(swept, path.stem, folder) for path in sorted(SWEEPS.glob("*.yaml"))]
        runs += [pool.submit(by_agent, path, folder) for path in sorted(SWEEPS.glob("wandb/*.yaml"))]
        for run in runs:
            print("check_sweeps:", run.result(), flush=True)
    seconds = time.monotonic() - began
    print(f"check_sweeps: {len(runs)} files in {seconds:.0f} s")
    assert seconds < LIMIT, f"more than {LIMIT:.0f} s"


if __name__ == "__main__":
    main()
