"""Active learning on embeddings: python benchmarks/embeddings.py times|compare|recipes|frozen [NAME ...] --help.

`times` runs each method as a command of its own, from the start of the process. `compare` runs strategies that
scikit-activeml has too (pip install scikit-activeml) with both packages in this process, on the same vectors, first
labels, budget and classifier: softmax regression with the same penalty. `recipes` compares the accuracy of ways to
scale embeddings and to train a head, over several sets (benchmarks/embedding_sets.py) and numbers of labels. `frozen`
times the cycles of a run on a frozen backbone, with embeddings computed once and in every epoch.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from benchmarks.whole_runs import Silent
from sslpl.config.build import build_setup
from sslpl.config.validation import validated_config
from sslpl.loop import initial_state, run_active_learning
from sslpl.runtime import Runtime
from sslpl.setup import Setup
from sslpl.state import State

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("random", "margin", "entropy", "badge", "core_set", "typiclust", "probcover", "kmeans", "cluster_margin")
# Names of the classes and their arguments in scikit-activeml.
COUNTERPARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("RandomSampling", {}),
    "entropy": ("UncertaintySampling", {"method": "entropy"}),
    "margin": ("UncertaintySampling", {"method": "margin_sampling"}),
    "least_confidence": ("UncertaintySampling", {"method": "least_confident"}),
    "badge": ("Badge", {}),
    "core_set": ("CoreSet", {}),
    "typiclust": ("TypiClust", {}),
    "probcover": ("ProbCover", {}),
    "dropquery": ("DropQuery", {}),
    "max_herding": ("MaxHerding", {}),
}


class Curve(NamedTuple):
    """The learning curve of one run, and its time."""

    seconds: float
    accuracy: list[float]  # after each cycle


def write_set(file: Path, rows: int, width: int, classes: int) -> None:
    """Writes a seeded set of overlapping classes: rectified random projections of a 16-dimensional mixture."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(classes, 16)).astype(np.float32)
    projection = generator.normal(size=(16, width)).astype(np.float32)
    arrays = {}
    for part, count in (("train", rows), ("test", 5000)):
        labels = generator.integers(classes, size=count)
        factors = centers[labels] + 0.9 * generator.normal(size=(count, 16)).astype(np.float32)
        noise = generator.normal(size=(count, width)).astype(np.float32)
        arrays |= {part: np.maximum(factors @ projection, 0) + noise, f"{part}_labels": labels}
    np.savez(file, **arrays)


def overrides(arguments: argparse.Namespace, file: Path, method: str) -> list[str]:
    """Returns the options of a run."""
    budget = {"initial": arguments.per_cycle, "per_cycle": arguments.per_cycle, "cycles": arguments.cycles}
    return [
        *("experiment=embeddings", f"dataset.file={file}", f"method={method}", "tracker=none"),
        *(f"budget.{key}={value}" for key, value in budget.items()),
        f"runtime.num_threads={arguments.threads}",
        *arguments.option,
    ]


def times(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Times each method as a command of its own."""
    file, rows = folder / "set.npz", []
    write_set(file, arguments.rows, arguments.width, arguments.classes)
    for method in arguments.names or METHODS:
        output = folder / method
        command = [sys.executable, str(ROOT / "run.py"), *overrides(arguments, file, method)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, f"runtime.output_dir={output}"], capture_output=True, text=True, env=os.environ, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            print(f"{method}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        rows.append({"method": method, "seconds with process start": seconds} | run_columns(output))
        print_row(rows[-1])
    return rows


def run_columns(output: Path) -> dict[str, Any]:
    """Reads the seconds by phase, the largest memory and the last accuracy of the only run in a folder."""
    (metrics,) = output.glob("**/metrics.csv")
    with metrics.open() as file:
        history = list(csv.DictReader(file))
    columns: dict[str, Any] = {}
    for phase in ("train", "evaluate", "query"):
        columns[f"{phase} s"] = sum(float(row[f"{phase}_seconds"] or 0) for row in history)
    columns["peak MiB"] = max(float(row["peak_memory_mib"]) for row in history)
    return columns | {"last accuracy": float(history[-1]["test_accuracy"])}


def make_setup(options: list[str]) -> Setup:
    """Builds the setup of a run from the options of its command."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=options, return_hydra_config=True)
    with open_dict(cfg):
        del cfg["hydra"]
    config = validated_config(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    return build_setup(config, Runtime(device="cpu", num_threads=config["runtime"]["num_threads"]))


def run_ours(setup: Setup) -> tuple[Curve, State]:
    """Runs the loop of sslpl."""
    start = time.perf_counter()
    state = run_active_learning(setup, initial_state(setup), Silent())
    return Curve(time.perf_counter() - start, [float(row["test_accuracy"] or 0) for row in state.history]), state


def run_theirs(setup: Setup, first: torch.Tensor, name: str, weight_decay: float) -> Curve:
    """Runs the same loop with scikit-activeml and scikit-learn's logistic regression."""
    from skactiveml import pool
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.utils import call_func
    from sklearn.linear_model import LogisticRegression

    train, test = (
        next(images.batches([torch.arange(len(images))])).flatten(1).numpy()
        for images in (setup.dataset.train, setup.dataset.test)
    )
    labels, test_labels = setup.dataset.train_labels.numpy(), setup.dataset.test_labels.numpy()
    class_name, options = COUNTERPARTS[name]
    strategy = getattr(pool, class_name)(random_state=setup.seed, **options)
    start = time.perf_counter()
    known, accuracy = np.full(len(labels), np.nan), []
    known[first.numpy()] = labels[first.numpy()]
    model = LogisticRegression(C=1 / weight_decay, max_iter=1000)
    classifier = SklearnClassifier(model, classes=np.arange(len(setup.dataset.class_names)), random_state=0)
    for cycle in range(setup.budget.cycles):
        classifier.fit(train, known)
        accuracy.append(float((classifier.predict(test) == test_labels).mean()))
        if cycle < setup.budget.cycles - 1:
            n = int(setup.budget.per_cycle)
            chosen = call_func(strategy.query, X=train, y=known, clf=classifier, fit_clf=False, batch_size=n)
            known[chosen] = labels[chosen]
    return Curve(time.perf_counter() - start, accuracy)


def compare(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Compares both packages, strategy by strategy."""
    file, rows = folder / "set.npz", []
    write_set(file, arguments.rows, arguments.width, arguments.classes)
    for name in arguments.names or [name for name in COUNTERPARTS if (ROOT / "conf/method" / f"{name}.yaml").exists()]:
        curves: dict[str, list[Curve]] = {"ours": [], "theirs": []}
        for seed in range(arguments.seeds):
            setup = make_setup([*overrides(arguments, file, name), f"seed={seed}"])
            ours, state = run_ours(setup)
            first = state.ledger.index[state.ledger.cycle == 0]
            curves["ours"].append(ours)
            curves["theirs"].append(run_theirs(setup, first, name, setup.training.weight_decay))
        seconds = {
            side: float(np.median([curve.seconds for curve in side_curves])) for side, side_curves in curves.items()
        }
        area = {
            side: float(np.mean([mean_accuracy(curve) for curve in side_curves]))
            for side, side_curves in curves.items()
        }
        rows.append(
            {"strategy": name, "scikit-activeml s": seconds["theirs"], "ours s": seconds["ours"]}
            | {"ratio": seconds["theirs"] / seconds["ours"]}
            | {"scikit-activeml AUBC": area["theirs"], "ours AUBC": area["ours"]}
        )
        print_row(rows[-1])
    return rows


# Ways to train a head, by name: options of a run.
RECIPES = {
    f"{backbone}, {name}": [f"backbone={backbone}", *options]
    for backbone in ("linear", "mlp")
    for name, options in {
        "L-BFGS, weight decay 0.3": ["training.weight_decay=0.3"],
        "L-BFGS, weight decay 1": [],
        "L-BFGS, weight decay 3": ["training.weight_decay=3.0"],
        "AdamW, 100 steps": ["training.optimizer=adamw"],
        "AdamW, 200 steps": ["training.optimizer=adamw", "training.steps=200"],
        "L-BFGS, weight decay 1, standardized": ["dataset.scaling=standardize"],
    }.items()
}
LABELS = (20, 100, 500, 2000)


def recipes(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Trains a head on random labels by each recipe; prints how far it is behind the best one, over sets and labels."""
    files = {"synthetic, 100 classes": folder / "set.npz"} | {path.stem: path for path in arguments.sets}
    write_set(files["synthetic, 100 classes"], 20_000, 384, 100)
    accuracy: dict[str, dict[str, float]] = {name: {} for name in RECIPES}
    for file_name, file in files.items():
        pool = len(np.load(file)["train_labels"])
        for labels in (count for count in LABELS if count < pool):
            for name, options in RECIPES.items():
                budget = [f"budget.initial={labels}", "budget.cycles=1"]
                runs = [
                    run_ours(make_setup([*overrides(arguments, file, "random"), *options, *budget, f"seed={seed}"]))[0]
                    for seed in range(arguments.seeds)
                ]
                accuracy[name][f"{file_name}, {labels} labels"] = float(np.mean([run.accuracy[-1] for run in runs]))
            print(f"{file_name}, {labels} labels: done", flush=True)
    table = np.array([list(row.values()) for row in accuracy.values()])
    gaps = 100 * (table.max(axis=0) - table)
    rows = [
        {"recipe": name, "mean gap": float(gap.mean()), "largest gap": float(gap.max())} | accuracy[name]
        for name, gap in zip(RECIPES, gaps, strict=True)
    ]
    for row in sorted(rows, key=lambda row: row["mean gap"]):
        print_row({key: row[key] for key in ("recipe", "mean gap", "largest gap")})
    return rows


def frozen(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Times each cycle of a run on Fashion-MNIST with a frozen backbone, as a command, both ways."""
    rows = []
    for augment in (True, False):
        output = folder / str(augment)
        options = [
            *("dataset=fashion_mnist", f"dataset.root={arguments.root}", "method=margin", "training=short"),
            *("backbone.freeze=true", f"training.augment={str(augment).lower()}", "training.precision=float32"),
            *("budget.initial=600", "budget.per_cycle=600", "budget.cycles=3", "tracker=none", *arguments.option),
            *(f"runtime.num_threads={arguments.threads}", f"runtime.output_dir={output}"),
        ]
        subprocess.run([sys.executable, str(ROOT / "run.py"), *options], check=True, stdout=subprocess.DEVNULL)
        (metrics,) = output.glob("**/metrics.csv")
        with metrics.open() as file:
            for cycle, row in enumerate(csv.DictReader(file), start=1):
                seconds = sum(float(row[f"{phase}_seconds"] or 0) for phase in ("train", "evaluate", "query"))
                rows.append({"training.augment": str(augment).lower(), "cycle": cycle, "seconds": seconds})
                print_row(rows[-1])
    return rows


def mean_accuracy(curve: Curve) -> float:
    """Returns the area under the budget curve of equal steps."""
    labels = np.arange(1, len(curve.accuracy) + 1, dtype=float)
    return float(np.trapezoid(curve.accuracy, labels) / (labels[-1] - labels[0]))


def print_row(row: dict[str, Any]) -> None:
    """Prints a row as soon as it is measured."""
    print(
        "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()),
        flush=True,
    )


def main() -> None:
    """Runs one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("times", "compare", "recipes", "frozen"))
    parser.add_argument("names", nargs="*", metavar="STRATEGY")
    parser.add_argument("--rows", type=int, default=50_000, help="of the pool (default: %(default)s)")
    parser.add_argument("--width", type=int, default=384, help="dimensions (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--cycles", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--per-cycle", type=int, default=100, help="labels per cycle (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of compare (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--sets", type=Path, nargs="*", default=[], help="files of embeddings, for recipes")
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST, for frozen")
    parser.add_argument("--option", action="append", default=[], help="a further option of every run")
    parser.add_argument("--json", type=Path, help="writes the rows as one array")
    arguments = parser.parse_args()
    benchmarks: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
        "times": times, "compare": compare, "recipes": recipes, "frozen": frozen,
    }  # fmt: skip
    with TemporaryDirectory(prefix="sslpl-embeddings-") as name:
        rows = benchmarks[arguments.benchmark](arguments, Path(name))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
