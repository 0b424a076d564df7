"""Writes the folders of runs with synthetic numbers, for tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sslpl.config import identity
from sslpl.recording import run_tables

CONFIG: dict[str, Any] = {
    "dataset": {"_target_": "sslpl.data.digits", "root": "data"},
    "backbone": {"_target_": "sslpl.models.small_cnn", "dropout": 0.0},
    "module": {"_target_": "sslpl.models.no_module"},
    "ranking": {"_target_": "sslpl.ranking.bce_ranking_loss"},
    "ssl": {"_target_": "sslpl.ssl.no_ssl"},
    "query": {"_target_": "sslpl.query.random"},
    "budget": {"initial": 20, "per_cycle": 20, "cycles": 4, "candidates": 0.5},
    "training": {"epochs": 3, "rate": 0.1, "module_rate": 0.05, "trim": False, "warm_start": True},
    "runtime": {"output_dir": "outputs"},
}
CLASSES, POOL = 4, 400


def write_run(
    root: Path,
    label: str,
    seed: int,
    accuracy: list[float],
    *,
    dataset: str = "digits",
    state: str = "finished",
    error: str | None = None,
    commit: str = "a" * 40,
    dirty: bool = False,
    correlation: float | None = None,
    choices: dict[str, str] | None = None,
    columns: dict[str, list[float]] | None = None,
    **values: dict[str, Any],
) -> Path:
    """Writes the folder of a run with an accuracy per cycle; `values` are merged into groups of its config.

    `columns` are further columns of its metrics, a value per cycle.
    """
    config = {key: {**group, **values.get(key, {})} for key, group in CONFIG.items()}
    config |= {"method": label.partition("+")[0], "seed": seed}
    folder = root / dataset / label / f"seed{seed}-{identity.run_id(config)}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is valid YAML
    status = {"state": state, "cycle": len(accuracy) - 1} | ({"error": error} if error else {})
    (folder / "status.json").write_text(json.dumps(status))
    origin = {"git": {"commit": commit, "dirty": dirty}, "versions": {"torch": "2.9"}, "device_name": "cpu"}
    (folder / "provenance.json").write_text(json.dumps(origin | {"choices": choices or {}}))
    budget = config["budget"]
    initial = POOL if budget["initial"] == 1.0 else budget["initial"]
    labeled = [initial + k * budget["per_cycle"] for k in range(len(accuracy))]
    rows = [
        {
            "cycle": k,
            "labeled": n,
            "test_accuracy": a,
            "test_nll": 1 - a,
            "loss_rank_correlation": correlation,
            "train_seconds": 2.0,
            "query_seconds": 1.0,
            **{key: column[k] for key, column in (columns or {}).items()},
        }
        for k, (n, a) in enumerate(zip(labeled, accuracy, strict=True))
    ]
    if rows:
        (folder / "metrics.csv").write_text(run_tables.metrics_csv(rows))
        (folder / "queries.csv").write_text(queries(label, seed, labeled))
    return folder


def queries(label: str, seed: int, labeled: list[int]) -> str:
    """Returns queries.csv: the initial images depend on the seed alone, the others also on the method name."""
    pool = max(POOL, 2 * labeled[-1]) if len(labeled) > 1 else labeled[-1]
    first = np.random.default_rng(seed).permutation(pool)[: labeled[0]]
    rest = np.setdiff1d(np.arange(pool), first)
    chosen = np.random.default_rng([seed, *map(ord, label)]).permutation(rest)[: labeled[-1] - labeled[0]]
    cycle = np.searchsorted(labeled, np.arange(labeled[-1]), side="right")
    lines = [f"{c},{i},{i % CLASSES}," for c, i in zip(cycle, [*first, *chosen], strict=True)]
    return "\n".join(["cycle,index,label,score", *lines]) + "\n"
