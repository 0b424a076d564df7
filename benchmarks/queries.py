"""Measures the time and memory of every query strategy: python benchmarks/queries.py [NAME ...] [--grow] [--json FILE].

Each measurement runs in a fresh process, which queries a small pool first, so that nothing is loaded during the
measurement. Predictions are given, as in a run that has scored its pool, so that only the strategy is measured; images
are random. Peak memory is what the query adds: see `PeakMemory` in measure.py.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see run.py
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import MIB, PeakMemory, Row, print_table, timed
from benchmarks.run import machine_line, seconds
from sslpl.data.augmentation import Augmentation
from sslpl.data.images import TensorImages
from sslpl.query.context import Context, Weights
from sslpl.run.errors import CONF
from sslpl.runtime import Runtime
from sslpl.types import Features, Predictions, QueryStrategy

STRATEGIES = sorted(path.stem for path in (CONF / "query").glob("*.yaml"))
SHARES = (0.25, 0.5, 1.0)  # of the pool, with --grow
MIN_MEASURABLE = {"seconds": 0.05, "peak_mib": 8.0}  # smaller values are noise, without an exponent
COLUMNS = ("strategy", "time", "+MiB", "time ~ n^", "memory ~ n^")


class Workload(NamedTuple):
    """The sizes of a query."""

    unlabeled: int = 10_000
    labeled: int = 1_000
    dimensions: int = 512
    classes: int = 10
    n: int = 500
    steps: int | None = None  # of strategies that train networks; None: their default


SMALL = Workload(400, 40, 16, 5, 20, steps=2)
WARM_UP = Workload(200, 20, n=20, steps=1)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="options of conf/query; default: all")
    for size, default in Workload()._asdict().items():
        if default is not None:
            parser.add_argument(f"--{size}", type=int, help=f"default: {default}, with --small {getattr(SMALL, size)}")
    parser.add_argument("--grow", action="store_true", help="also a quarter and half of the pool: growth exponents")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the rows as one array")
    parser.add_argument("--small", action="store_true", help="tiny sizes, only to check that it runs")
    return parser


def main() -> int:
    """Runs the benchmarks of the command line; returns 1 if a strategy failed."""
    arguments = parser().parse_args()
    if unknown := [name for name in arguments.names if name not in STRATEGIES]:
        parser().error(f"unknown: {', '.join(unknown)}; choose from {', '.join(STRATEGIES)}")
    given = {key: value for key, value in vars(arguments).items() if key in Workload._fields and value is not None}
    workload = (SMALL if arguments.small else Workload())._replace(**given)
    torch.set_num_threads(arguments.threads)
    machine = f"{machine_line(torch.device('cpu'))}; {describe(workload)}"
    print(machine, flush=True)
    rows: list[Row] = []
    for name in arguments.names or STRATEGIES:
        points = [
            measure_in_process(name, part, arguments.threads) for part in pool_shares(workload, grow=arguments.grow)
        ]
        rows.append(points[-1] | {"points": points, "machine": machine} | growth(points))
        print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print_table(COLUMNS, map(cells, rows), "queries", machine, width=120)
    return int(any("error" in row for row in rows))


def describe(workload: Workload) -> str:
    """Describes a workload in one line."""
    return (
        f"{workload.n:,} of {workload.unlabeled:,} unlabeled images, {workload.labeled:,} labeled, "
        f"{workload.dimensions:,} dimensions, {workload.classes:,} classes"
    )


def pool_shares(workload: Workload, *, grow: bool) -> list[Workload]:
    """Returns the workloads to measure: with `grow` for each share of the pool, else for the whole pool only."""
    return [
        workload._replace(unlabeled=max(workload.n, round(workload.unlabeled * s))) for s in SHARES if grow or s == 1
    ]


def measure_in_process(name: str, workload: Workload, threads: int) -> Row:
    """Returns the result of `measure` in a new process, forked from one with all imports, or its error."""
    row: Row = {"name": name, "unlabeled": workload.unlabeled, "load_average": os.getloadavg()[0]}
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.queries", "sklearn.cluster"])
    with ProcessPoolExecutor(1, processes) as pool:
        try:
            return row | pool.submit(measure, name, workload, threads).result()
        except Exception as error:  # go on with the other strategies
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            return row | {"error": repr(error)}


def measure(name: str, workload: Workload, threads: int) -> Row:
    """Measures seconds and added memory of one query."""
    device = Runtime(device="cpu").prepare()
    torch.set_num_threads(threads)
    prepare_query(name, WARM_UP._replace(dimensions=workload.dimensions, classes=workload.classes))()
    call = prepare_query(name, workload)
    processor = time.process_time()
    with PeakMemory(device) as peak:
        took, selection = timed(call, 1, device)
    assert len(selection.index.unique()) == workload.n
    processor = time.process_time() - processor  # of all threads; hardly affected by other processes
    return {"seconds": took, "processor_seconds": processor, "peak_mib": peak.added / MIB}


def prepare_query(name: str, workload: Workload) -> partial:
    """Returns a query as a call without arguments."""
    chosen = load_strategy(name)
    if workload.steps is not None and "steps" in chosen.keywords:
        chosen = partial(chosen, steps=workload.steps)
    return partial(chosen, context(workload), workload.n, torch.Generator().manual_seed(0))


def load_strategy(name: str) -> QueryStrategy:
    """Returns the strategy of an option of conf/query, with its default arguments."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", overrides=[f"query={name}"]).query)


class PixelNetwork(nn.Module):
    """A linear head over the first pixels of an image: next to nothing to compute."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.head = nn.Linear(workload.dimensions, workload.classes)

    def forward(self, images: Tensor) -> Features:
        embedding = images.flatten(1)[:, : self.head.in_features]
        return Features(self.head(embedding), (), embedding)


def context(workload: Workload) -> Context:
    """Returns a context with embeddings around a center for each class, a head's logits, and random images."""
    rng, pool = torch.Generator().manual_seed(0), workload.labeled + workload.unlabeled
    centers = torch.randn(workload.classes, workload.dimensions, generator=rng)
    classes = torch.randint(workload.classes, (pool,), generator=rng)
    embedding = centers[classes].add_(torch.randn(pool, workload.dimensions, generator=rng), alpha=1.5).relu_()
    loss = torch.rand(pool, generator=rng)
    heads = [draw_head(centers, rng) for _ in range(7)]  # of the current and previous backbone, and of snapshots
    backbone = PixelNetwork(workload).eval()
    backbone.load_state_dict(heads[0])

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        rows, used = embedding[index], heads[0] if weights is None else weights
        return Predictions(index, linear(rows, used["head.weight"], used["head.bias"]), rows, loss[index])

    augmentation = Augmentation((3, 32, 32), (0.5,) * 3, (1.0,) * 3, flip=True, padding=4, cutout=16)
    unlabeled = torch.arange(workload.labeled, pool)
    return Context(
        unlabeled=unlabeled,
        labeled=torch.arange(workload.labeled),
        labels=classes[: workload.labeled],
        candidates=workload.unlabeled // 2,
        num_classes=workload.classes,
        device=torch.device("cpu"),
        backbone=backbone,
        module=None,
        images=TensorImages(torch.randint(256, (pool, 3, 32, 32), generator=rng, dtype=torch.uint8)),
        normalize=augmentation.normalize,
        augment=augmentation.random_weak,
        predict=predict,
        cycle=1,
        precomputed=predict(None, unlabeled),
        previous_weights=heads[1],
        snapshots=heads[2:],
        truth=classes,
    )


def draw_head(centers: Tensor, rng: Generator) -> Weights:
    """Draws a linear head that classifies most embeddings correctly."""
    noise = torch.randn(centers.shape, generator=rng)
    return {"head.weight": (centers + noise) / centers.shape[1] ** 0.75, "head.bias": torch.zeros(len(centers))}


def growth(points: list[Row]) -> Row:
    """Returns the growth exponents of time and memory with the pool; None if a value is too small to measure."""
    found: Row = {}
    for key, minimum in MIN_MEASURABLE.items():
        values = [point.get(key, 0.0) for point in points]
        measurable = len(values) > 1 and min(values) >= minimum
        x = np.log([point["unlabeled"] for point in points])
        found[f"{key}_exponent"] = linear_regression(x, np.log(values)).slope if measurable else None
    return found


def cells(row: Row) -> list[str]:
    """Returns the cells of a row of the table."""
    if "error" in row:
        return [row["name"], "failed", *["-"] * 3]
    exponents = [row["seconds_exponent"], row["peak_mib_exponent"]]
    written = ["-" if value is None else f"{value:.1f}" for value in exponents]
    return [row["name"], seconds(row["seconds"]), f"{row['peak_mib']:,.0f}", *written]


if __name__ == "__main__":
    sys.exit(main())
