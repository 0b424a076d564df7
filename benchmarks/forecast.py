"""How often forecast intervals hold the truth: python benchmarks/forecast.py FOLDER [FOLDER ...] [--runs 200] --help.

Reads finished runs on embeddings (any method), and forecasts from the cycles before the fourth, the middle and the
last quarter of each: the accuracy after the next batch, after three batches and after the last one. Prints in which
share of the runs the interval of 80% holds the accuracy that was measured, its mean width, and the mean error of the
median; one line for each set of embeddings, and one for all. Runs are drawn at random, without replacement.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package

import numpy as np
import yaml

from sslpl.forecast import MIN_CYCLES, fit_power_laws, forecast_at

HORIZONS = ("next batch", "three batches", "last batch")


class Curve(NamedTuple):
    """The learning curve of a finished run."""

    dataset: str
    labeled: tuple[float, ...]
    accuracy: tuple[float, ...]
    test_images: int


class Outcome(NamedTuple):
    """A forecast beside what happened."""

    holds: bool
    width: float
    error: float  # measured accuracy minus the median


def main() -> None:
    """Prints the coverage of the intervals."""
    parser = argparse.ArgumentParser(description="Measures how often forecast intervals hold the truth.")
    parser.add_argument("folder", nargs="+", type=Path, help="folders of runs on embeddings, searched with all below")
    parser.add_argument("--cycles", type=int, default=9, help="fewest cycles of a run that counts")
    parser.add_argument("--runs", type=int, default=200, help="how many runs are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    curves = [curve for folder in options.folder for curve in read_curves(folder, options.cycles)]
    if len(curves) < options.runs:
        sys.exit(f"only {len(curves)} finished runs of at least {options.cycles} cycles; --runs {options.runs}")
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for curve in random.Random(options.seed).sample(sorted(curves), options.runs):
        for known in sorted({MIN_CYCLES, len(curve.labeled) // 2, 3 * len(curve.labeled) // 4}):
            for horizon, outcome in outcomes(curve, known):
                found[curve.dataset, horizon].append(outcome)
                found["all", horizon].append(outcome)
    print(f"{options.runs} runs\n{'dataset':28}{'horizon':16}{'forecasts':>10}{'covered':>9}{'width':>8}{'error':>8}")
    for (dataset, horizon), results in sorted(found.items()):
        holds, width, error = (float(np.mean(column)) for column in zip(*results, strict=True))
        print(f"{dataset:28}{horizon:16}{len(results):>10}{holds:>9.1%}{width:>8.3f}{error:>8.3f}")


def read_curves(top: Path, cycles: int) -> Iterator[Curve]:
    """Reads the finished runs below a folder that have enough cycles."""
    sizes: dict[str, int] = {}
    for path in sorted(top.glob("**/summary.json")):
        status = json.loads((path.parent / "status.json").read_text())
        summary = json.loads(path.read_text())
        if status["state"] != "finished" or len(summary["labeled"]) < cycles:
            continue
        file = yaml.safe_load((path.parent / "config.yaml").read_text())["dataset"]["file"]
        if file not in sizes:
            with np.load(file) as arrays:
                sizes[file] = len(arrays["test_labels"])
        yield Curve(Path(file).stem, tuple(summary["labeled"]), tuple(summary["test_accuracy"]), sizes[file])


def outcomes(curve: Curve, known: int) -> Iterator[tuple[str, Outcome]]:
    """Yields for each horizon the forecast from the first `known` cycles beside what was measured."""
    last = len(curve.labeled) - 1
    laws = fit_power_laws(curve.labeled[:known], curve.accuracy[:known], curve.test_images)
    for horizon, cycle in zip(HORIZONS, horizon_cycles(known, last), strict=True):
        if cycle is not None:
            forecast, truth = forecast_at(laws, curve.labeled[cycle]), curve.accuracy[cycle]
            holds = forecast.low <= truth <= forecast.high
            yield horizon, Outcome(holds, forecast.high - forecast.low, truth - forecast.accuracy)


def horizon_cycles(known: int, last: int) -> Sequence[int | None]:
    """Returns the cycle (from 0) of each horizon; None if it is that of a shorter one or beyond the last."""
    third = known + 2
    return (known, third if third <= last else None, last if last > third else None)


if __name__ == "__main__":
    main()
