"""Measures queries of large pools under a limit of memory: python benchmarks/large.py [NAME ...] [--json FILE].

Each measurement has a process of its own, which first asks a small pool. Embeddings lie around a center for each class
and are stored as `predict` stores them: large ones in a file. Two peaks are told, that of the interpreter included:
private memory, which the system cannot take back and which RLIMIT_DATA ends the process above, and all that is
resident, with the pages of mapped files (and of libraries). Exponents are those of the last two sizes. `scoring` is
`predict` itself, over images of 8x8 by a network of two layers.
"""

import argparse
import json
import math
import os
import resource
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measures the checkout that it lies in
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see run.py

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import MIB, Row, give_back_freed_memory, status, timed
from benchmarks.queries import STRATEGIES, World, head, strategy
from benchmarks.run import machine_line, seconds
from sslpl.data.images import TensorImages
from sslpl.distributed.world import SINGLE_PROCESS
from sslpl.learn.inference import predict
from sslpl.learn.prediction_table import PredictionTable
from sslpl.query.context import Context, Weights
from sslpl.types import Features, Predictions

SCORING = "scoring"
NAMES = (
    *(SCORING, "random", "entropy", "predicted_loss", "selective_clustering", "cluster_margin"),
    *("core_set", "kmeans", "badge", "typiclust"),
)
WORLD = World(labeled=1_000, dimensions=512, classes=100, n=1_000)
SMALL = World(labeled=20, dimensions=16, classes=5, n=20)
CANDIDATES = 15_000  # of the strategies that cluster
PART = 8_192  # images made at a time


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"options of conf/query; default: {', '.join(NAMES)}")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], help="unlabeled images")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB of private memory (default: %(default)s)")
    parser.add_argument("--override", nargs="*", default=[], help="of the query's arguments: subset=10000")
    parser.add_argument("--threads", type=int, default=1, help="of torch and faiss (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the rows as one array")
    parser.add_argument("--small", action="store_true", help="few dimensions: times mean nothing")
    return parser


def main() -> int:
    """Runs what the command line asks for; 1 if a strategy failed."""
    arguments = parser().parse_args()
    if unknown := [name for name in arguments.names if name not in (SCORING, *STRATEGIES)]:
        parser().error(f"unknown: {', '.join(unknown)}; choose from {', '.join((SCORING, *STRATEGIES))}")
    world = SMALL if arguments.small else WORLD
    machine = f"{machine_line(torch.device('cpu'))}; {world.n:,} images asked for, {CANDIDATES:,} candidates"
    print(
        machine,
        "query | unlabeled | time | of the processor | private MiB | resident MiB",
        sep="\n",
        flush=True,
    )
    points: dict[str, list[Row]] = {name: [] for name in arguments.names or NAMES}
    for size in arguments.sizes:
        pool = context(world._replace(unlabeled=size))
        for name in points:
            points[name].append(in_a_process(name, pool, world, arguments))
        del pool
        rows = [{"name": name, "machine": machine, "points": row} | exponents(row) for name, row in points.items()]
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']}: time ~ n^{row['seconds_exponent']}, private ~ n^{row['private_mib_exponent']}")
    return int(any("error" in point for row in rows for point in row["points"]))


def in_a_process(name: str, pool: Context, world: World, arguments: argparse.Namespace) -> Row:
    """What `measure` returns in a fork of this process; the error if it fails, or is ended for its memory."""
    row: Row = {"unlabeled": len(pool.unlabeled), "load_average": os.getloadavg()[0]}
    forks = get_context("fork")
    with ProcessPoolExecutor(1, forks, initializer=inherit, initargs=(pool, world)) as executor:
        try:
            row |= executor.submit(measure, name, arguments.limit, arguments.threads, arguments.override).result()
        except Exception as error:  # the others are measured all the same
            row["error"] = repr(error)
    told = row.get("error") or " | ".join(
        (
            *(seconds(row[key]) for key in ("seconds", "processor_seconds")),
            *(f"{row[key]:,.0f}" for key in ("private_mib", "resident_mib")),
        )
    )
    print(f"{name} | {row['unlabeled']:,} | {told}", flush=True)
    return row


INHERITED: list[tuple[Context, World]] = []  # in a fork: nothing large is made twice, or sent


def inherit(pool: Context, world: World) -> None:
    """Keeps what the process was forked with."""
    INHERITED.append((pool, world))


def measure(name: str, limit: float, threads: int, overrides: list[str]) -> Row:
    """Seconds of one query, and the highest private and resident memory of the process during it."""
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
    pool, world = INHERITED[0]
    work(name, context(world._replace(unlabeled=400, labeled=20, n=20)), 20, overrides)()
    call = work(name, pool, world.n, overrides)
    give_back_freed_memory()
    processor = time.process_time()
    with Watched() as peak:
        took, _ = timed(call, 1, torch.device("cpu"))
    processor = time.process_time() - processor  # of all threads: what a busy machine leaves nearly as it is
    memory = {"private_mib": peak.private / MIB, "resident_mib": peak.resident / MIB}
    return {"seconds": took, "processor_seconds": processor} | memory


def work(name: str, pool: Context, n: int, overrides: list[str]) -> partial:
    """What is measured, ready to be called."""
    rng = torch.Generator().manual_seed(0)
    if name == SCORING:
        augmentation = SimpleNamespace(plain=floats)
        setup = SimpleNamespace(
            device=torch.device("cpu"), bfloat16=False, augmentation=augmentation, world=SINGLE_PROCESS
        )
        images = torch.randint(256, (len(pool.unlabeled), 1, 8, 8), generator=rng, dtype=torch.uint8)
        network = TwoLayers(pool.predictions.embedding.shape[1], pool.num_classes)
        return partial(predict, setup, network, None, TensorImages(images), torch.arange(len(images)))
    chosen = partial(strategy(name), **{key: json.loads(value) for key, value in (o.split("=") for o in overrides)})
    return partial(chosen, pool, n, rng)


def floats(images: Tensor) -> Tensor:
    """Pixels between 0 and 1."""
    return images.float().div_(255)


class TwoLayers(nn.Module):
    """A network that costs next to nothing."""

    def __init__(self, dimensions: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, dimensions), nn.Linear(dimensions, classes)

    def forward(self, images: Tensor) -> Features:
        embedding = self.body(images.flatten(1)).relu()
        return Features(self.head(embedding), (), embedding)


def context(world: World) -> Context:
    """Rectified embeddings around a center for each class, and the logits of heads over them."""
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(world.classes, world.dimensions, generator=rng)
    heads = [head(centers, rng) for _ in range(7)]  # the current one, the cycle before's, and snapshots
    pool, table = world.labeled + world.unlabeled, {}
    for part, count in (("labeled", world.labeled), ("unlabeled", world.unlabeled)):
        stored = PredictionTable(count)
        for start in range(0, count, PART):
            classes = torch.randint(world.classes, (min(PART, count - start),), generator=rng)
            noise = torch.randn(len(classes), world.dimensions, generator=rng)
            stored.append(centers[classes].add_(noise, alpha=1.5).relu_())
        table[part] = stored.whole()
    loss = torch.rand(pool, generator=rng)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        used, logits = heads[0] if weights is None else weights, PredictionTable(len(index))
        embedding = table["labeled" if len(index) == world.labeled else "unlabeled"]
        for part in embedding.split(PART):
            logits.append(linear(part, used["head.weight"], used["head.bias"]))
        return Predictions(index, logits.whole(), embedding, loss[index])

    backbone = nn.ModuleDict({"head": nn.Linear(world.dimensions, world.classes)}).eval()
    backbone.load_state_dict(heads[0])
    unlabeled = torch.arange(world.labeled, pool)
    return Context(
        unlabeled=unlabeled,
        labeled=torch.arange(world.labeled),
        labels=torch.randint(world.classes, (world.labeled,), generator=rng),
        candidates=min(CANDIDATES, world.unlabeled),
        num_classes=world.classes,
        device=torch.device("cpu"),
        backbone=backbone,
        module=None,
        images=TensorImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
        normalize=floats,
        augment=lambda images, _: floats(images),
        predict=predict,
        cycle=1,
        precomputed=predict(None, unlabeled),
        previous_weights=heads[1],
        snapshots=heads[2:],
        truth=None,
    )


class Watched:
    """The highest private and resident memory of the process while it is entered, looked at every 5 ms."""

    private = resident = 0  # bytes

    def __enter__(self) -> "Watched":
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.005):
            self.look()

    def look(self) -> None:
        self.private = max(self.private, 1024 * (status("RssAnon") + status("RssShmem")))
        self.resident = max(self.resident, 1024 * status("VmRSS"))

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.look()


def exponents(points: list[Row]) -> Row:
    """Slopes of processor time and private memory over the last two sizes, both logarithmic; None for under 50 ms."""
    last, found = points[-2:], {"seconds_exponent": None, "private_mib_exponent": None}
    if len(last) < 2 or any("error" in point for point in last):
        return found
    growth = math.log(last[1]["unlabeled"] / last[0]["unlabeled"])
    if last[0]["processor_seconds"] >= 0.05:
        found["seconds_exponent"] = round(
            math.log(last[1]["processor_seconds"] / last[0]["processor_seconds"]) / growth, 2
        )
    found["private_mib_exponent"] = round(math.log(last[1]["private_mib"] / last[0]["private_mib"]) / growth, 2)
    return found


if __name__ == "__main__":
    sys.exit(main())
