"""Starts every file of multirun_sweeps by the real command, with minimal work in each run: `make check`.

Each sweep tries two values of its longest list, and the first of every other; Fashion-MNIST is a few random images in
the published layout. W&B's sweep files are run by W&B's own agent, against a local server.
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
from layouts import write_cifar10, write_embeddings, write_fashion_mnist
from wandb_server import ENTITY, wandb_server

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "multirun_sweeps"
LIMIT = 600.0  # seconds, after which one sweep counts as stuck
TRAINING = {
    **{"training.epochs": "1", "training.min_steps": "0", "training.finetune_epochs": "1"},
    "runtime.progress": "none",
}
BUDGET = {"budget.cycles": "2", "budget.initial": "20", "budget.per_cycle": "10", "budget.candidates": "60"}
OWN_BUDGET = {"budgets": ("budget.cycles",), "ablation_candidates": (*BUDGET,)[:3], "ceiling_fashion": ()}
KEY = "0123456789abcdef0123456789abcdef01234567"


def small_options(name: str) -> dict[str, str]:
    """Returns the overrides that make a run small; a sweep over budgets or candidates keeps its own values."""
    reduced = OWN_BUDGET.get(name, BUDGET)
    return TRAINING | {key: value for key, value in BUDGET.items() if key in reduced}


def fewer_values_of(name: str) -> dict[str, str]:
    """Reduces the values of a sweep: two of the key that has most, one of every other key."""
    file = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["hydra"]["sweeper"]
    if "n_trials" in file:  # a search
        return {}
    values = {key: values_in(str(options)) for key, options in file["params"].items()}
    longest = max(values, key=lambda key: (key not in small_options(name), len(values[key]), key != "seed"))
    several = [value for value in values[longest] if value != "full"]  # the fully supervised ceiling has its own budget
    values = {key: options[:1] for key, options in values.items()} | {
        longest: [several[0], several[-1]][: len(several)]
    }
    return {key: ",".join(options) for key, options in values.items()} | {
        k: v for k, v in small_options(name).items() if k in values
    }


def values_in(options: str) -> list[str]:
    """Returns the values that a sweep tries: those of a list, or 0 of a range of seeds."""
    return ["0"] if options.startswith("range(") else options.split(",")


def run_count(name: str) -> int:
    """Counts the runs of a reduced sweep."""
    return (
        int(np.prod([value.count(",") + 1 for value in fewer_values_of(name).values()])) if fewer_values_of(name) else 2
    )


def run_sweep(name: str, folder: Path) -> str:
    """Runs a sweep into a folder; returns a line with its time, AssertionError unless all of its runs are finished."""
    start_time, output = time.monotonic(), folder / name
    params = ", ".join(f"{key}: '{value}'" for key, value in fewer_values_of(name).items())
    sweep_values = [f"hydra.sweeper.params={{{params}}}"] if params else ["hydra.sweeper.n_trials=2"]
    small_run = [f"{key}={value}" for key, value in small_options(name).items() if key not in fewer_values_of(name)]
    files = f"file={folder / 'embeddings.npz'}" if name.startswith("embeddings") else f"root={folder / 'files'}"
    where = [f"runtime.output_dir={output}", f"dataset.{files}"]
    command = [sys.executable, str(ROOT / "run.py"), "-cd", str(SWEEPS), "-cn", name, *sweep_values, *small_run, *where]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{name} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    states = [json.loads(path.read_text())["state"] for path in output.glob("**/status.json")]
    assert states == ["finished"] * run_count(name), f"{name}: {states}, not {run_count(name)} finished\n{done.stdout}"
    return f"{name}: {len(states)} runs in {time.monotonic() - start_time:.0f} s"


def first_values(sweep: dict[str, Any]) -> dict[str, Any]:
    """Returns the first or lowest value of each parameter of a W&B sweep."""
    return {
        key: node.get("value", node["values"][0] if "values" in node else node.get("min"))
        for key, node in sweep["parameters"].items()
    }


def run_agent_sweep(file: Path, folder: Path) -> str:
    """Lets W&B's agent start one run of a sweep file; AssertionError unless the server receives its result."""
    start_time, output = time.monotonic(), folder / file.stem
    sweep = yaml.safe_load(file.read_text())
    args = first_values(sweep) | small_options(file.stem) | {"runtime.output_dir": str(output)}
    with wandb_server() as server:
        server.sweep = yaml.safe_dump(sweep)
        run = {"type": "run", "run_id": "agentrun", "program": "run.py"}
        server.commands = [run | {"args": {key: {"value": value} for key, value in args.items()}}]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        wandb_environment = {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_DIR": str(folder),
            "HOME": str(folder),
        }
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        command = [sys.executable, "-m", "wandb", "agent", "--count", "1", f"{ENTITY}/sslpl/sw33p"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env | wandb_environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        log = f"\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{file.name}: the agent ended with {done.returncode}{log}"
        assert set(server.runs) == {"agentrun"}, f"{file.name}: not the sweep's run but {set(server.runs)}{log}"
        uploaded = server.runs["agentrun"]
        (summary,) = output.glob("**/summary.json")
        assert uploaded.upsert["sweep"] == "sw33p", f"{file.name}: outside of the sweep"
        area = json.loads(summary.read_text())[sweep["metric"]["name"]]
        assert abs(uploaded.summary[sweep["metric"]["name"]] - area) < 1e-6, f"{file.name}: {uploaded.summary}"
    return f"wandb/{file.stem}: a run of the sweep in {time.monotonic() - start_time:.0f} s"


def main() -> None:
    """Runs every sweep, two at a time; exits with 0 if all succeed."""
    os.environ |= {"OMP_NUM_THREADS": "1"}
    start_time = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-sweeps-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        for write in (write_fashion_mnist, write_cifar10):
            write(folder / "files", 240, 40, np.random.default_rng(0))
        write_embeddings(folder / "embeddings.npz", 300, 40, np.random.default_rng(0))
        runs = [pool.submit(run_sweep, path.stem, folder) for path in sorted(SWEEPS.glob("*.yaml"))]
        runs += [pool.submit(run_agent_sweep, path, folder) for path in sorted(SWEEPS.glob("wandb/*.yaml"))]
        for run in runs:
            print("check_sweeps:", run.result(), flush=True)
    seconds = time.monotonic() - start_time
    print(f"check_sweeps: {len(runs)} files in {seconds:.0f} s")


if __name__ == "__main__":
    main()
