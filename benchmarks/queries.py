"""Measures the time and memory of every query strategy: python benchmarks/queries.py [NAME ...] [--grow] [--json FILE].

Each measurement has a fresh process, which first asks a small pool, so that nothing is loaded for the first time while
it is watched. Predictions are given, as in a run that has scored its pool, so that it is the strategy that is measured;
images are random. Peak memory is what the query adds: see `Peak` in measure.py.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measures the checkout that it lies in
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see run.py
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import MIB, Peak, Row, timed
from benchmarks.run import machine_line, seconds
from sslpl.data.augmentation import Augmentation
from sslpl.data.images import TensorImages
from sslpl.query.context import Context, Weights
from sslpl.run.errors import CONF
from sslpl.runtime import Runtime
from sslpl.types import Features, Predictions, QueryStrategy

STRATEGIES = sorted(path.stem for path in (CONF / "query").glob("*.yaml"))
SHARES = (0.25, 0.5, 1.0)  # of the pool, with --grow
CLEAR = {"seconds": 0.05, "peak_mib": 8.0}  # what is below it at the first share is noise, without an exponent
COLUMNS = ("strategy", "time", "+MiB", "time ~ n^", "memory ~ n^")


class World(NamedTuple):
    """What is queried."""

    unlabeled: int = 10_000
    labeled: int = 1_000
    dimensions: int = 512
    classes: int = 10
    n: int = 500
    steps: int | None = None  # of a strategy that trains, instead of its own


SMALL = World(400, 40, 16, 5, 20, steps=2)
WARM_UP = World(200, 20, n=20, steps=1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the options of conf/query; default: all")
    for size, default in World()._asdict().items():
        if default is not None:
            parser.add_argument(f"--{size}", type=int, help=f"default: {default}, with --small {getattr(SMALL, size)}")
    parser.add_argument("--grow", action="store_true", help="also a quarter and half of the pool: growth exponents")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the rows as one array")
    parser.add_argument("--small", action="store_true", help="tiny sizes: times mean nothing")
    return parser


def main() -> int:
    """Runs what the command line asks for; 1 if a strategy failed."""
    arguments = parser().parse_args()
    if unknown := [name for name in arguments.names if name not in STRATEGIES]:
        parser().error(f"unknown: {', '.join(unknown)}; choose from {', '.join(STRATEGIES)}")
    given = {key: value for key, value in vars(arguments).items() if key in World._fields and value is not None}
    world = (SMALL if arguments.small else World())._replace(**given)
    torch.set_num_threads(arguments.threads)
    machine = f"{machine_line(torch.device('cpu'))}; {pool_line(world)}"
    print(machine, flush=True)
    rows: list[Row] = []
    for name in arguments.names or STRATEGIES:
        points = [in_a_process(name, part, arguments.threads) for part in parts(world, grow=arguments.grow)]
        rows.append(points[-1] | {"points": points, "machine": machine} | growth(points))
        print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows, machine)
    return int(any("error" in row for row in rows))


def pool_line(world: World) -> str:
    """How much is asked of what."""
    return (
        f"{world.n:,} of {world.unlabeled:,} unlabeled images, {world.labeled:,} labeled, "
        f"{world.dimensions:,} dimensions, {world.classes:,} classes"
    )


def parts(world: World, *, grow: bool) -> list[World]:
    """The worlds to measure, of which the last is the whole one."""
    return [world._replace(unlabeled=max(world.n, round(world.unlabeled * s))) for s in SHARES if grow or s == 1]


def in_a_process(name: str, world: World, threads: int) -> Row:
    """What `measure` returns in a fresh process (of one that has the imports done); the error if it, or that, fails."""
    row: Row = {"name": name, "unlabeled": world.unlabeled, "load_average": os.getloadavg()[0]}
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.queries", "sklearn.cluster"])
    with ProcessPoolExecutor(1, processes) as pool:
        try:
            return row | pool.submit(measure, name, world, threads).result()
        except Exception as error:  # the others are measured all the same
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            return row | {"error": repr(error)}


def measure(name: str, world: World, threads: int) -> Row:
    """Seconds and added memory of one query."""
    device = Runtime(device="cpu").prepare()
    torch.set_num_threads(threads)
    query(name, WARM_UP._replace(dimensions=world.dimensions, classes=world.classes))()
    call = query(name, world)
    processor = time.process_time()
    with Peak(device) as peak:
        took, picked = timed(call, 1, device)
    assert len(picked.index.unique()) == world.n
    processor = time.process_time() - processor  # of all threads: what a busy machine leaves as it is
    return {"seconds": took, "processor_seconds": processor, "peak_mib": peak.added / MIB}


def query(name: str, world: World) -> partial:
    """A query, ready to be called."""
    chosen = strategy(name)
    if world.steps is not None and "steps" in chosen.keywords:
        chosen = partial(chosen, steps=world.steps)
    return partial(chosen, context(world), world.n, torch.Generator().manual_seed(0))


def strategy(name: str) -> QueryStrategy:
    """The strategy of that name with its default arguments."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config", overrides=[f"query={name}"]).query)


class PixelNetwork(nn.Module):
    """A linear head over the first pixels of an image: next to nothing to compute."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.head = nn.Linear(world.dimensions, world.classes)

    def forward(self, images: Tensor) -> Features:
        embedding = images.flatten(1)[:, : self.head.in_features]
        return Features(self.head(embedding), (), embedding)


def context(world: World) -> Context:
    """Rectified embeddings around a center for each class, the logits of a head over them, and random images."""
    rng, pool = torch.Generator().manual_seed(0), world.labeled + world.unlabeled
    centers = torch.randn(world.classes, world.dimensions, generator=rng)
    classes = torch.randint(world.classes, (pool,), generator=rng)
    embedding = centers[classes].add_(torch.randn(pool, world.dimensions, generator=rng), alpha=1.5).relu_()
    loss = torch.rand(pool, generator=rng)
    heads = [head(centers, rng) for _ in range(7)]  # the current one, the cycle before's, and snapshots
    backbone = PixelNetwork(world).eval()
    backbone.load_state_dict(heads[0])

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        some, used = embedding[index], heads[0] if weights is None else weights
        return Predictions(index, linear(some, used["head.weight"], used["head.bias"]), some, loss[index])

    augmentation = Augmentation((3, 32, 32), (0.5,) * 3, (1.0,) * 3, flip=True, padding=4, cutout=16)
    unlabeled = torch.arange(world.labeled, pool)
    return Context(
        unlabeled=unlabeled,
        labeled=torch.arange(world.labeled),
        labels=classes[: world.labeled],
        candidates=world.unlabeled // 2,
        num_classes=world.classes,
        device=torch.device("cpu"),
        backbone=backbone,
        module=None,
        images=TensorImages(torch.randint(256, (pool, 3, 32, 32), generator=rng, dtype=torch.uint8)),
        normalize=augmentation.plain,
        augment=augmentation.random_weak,
        predict=predict,
        cycle=1,
        precomputed=predict(None, unlabeled),
        previous_weights=heads[1],
        snapshots=heads[2:],
        truth=classes,
    )


def head(centers: Tensor, rng: Generator) -> Weights:
    """A linear head that finds most classes, another for each draw."""
    noise = torch.randn(centers.shape, generator=rng)
    return {"head.weight": (centers + noise) / centers.shape[1] ** 0.75, "head.bias": torch.zeros(len(centers))}


def growth(points: list[Row]) -> Row:
    """Slopes of time and memory over the pool, both logarithmic; none for what is too small to tell."""
    found: Row = {}
    for key, least in CLEAR.items():
        values = [point.get(key, 0.0) for point in points]
        clear = len(values) > 1 and min(values) >= least
        x = np.log([point["unlabeled"] for point in points])
        found[f"{key}_exponent"] = linear_regression(x, np.log(values)).slope if clear else None
    return found


def cells(row: Row) -> list[str]:
    """A row of the table."""
    if "error" in row:
        return [row["name"], "failed", *["-"] * 3]
    exponents = [row["seconds_exponent"], row["peak_mib_exponent"]]
    written = ["-" if value is None else f"{value:.1f}" for value in exponents]
    return [row["name"], seconds(row["seconds"]), f"{row['peak_mib']:,.0f}", *written]


def show(rows: list[Row], machine: str) -> None:
    """Prints the table: with rich, or plainly where that is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in [list(COLUMNS), *map(cells, rows)]:
            print("\t".join(row))
    else:
        table = Table(*COLUMNS, title="queries", caption=machine)
        for row in rows:
            table.add_row(*cells(row))
        console = Console()
        (console if console.is_terminal else Console(width=120)).print(table)


if __name__ == "__main__":
    sys.exit(main())
