"""Measures queries of large pools under a memory limit: python benchmarks/large.py [NAME ...] [--json FILE].

Each measurement runs in a process of its own, which queries a small pool first. Embeddings are drawn around a center
for each class and stored as `predict` stores them: large ones in a file. Two peaks are reported, both with the
interpreter: private memory, which the system cannot reclaim and RLIMIT_DATA limits, and resident memory, with the pages
of mapped files and libraries. Growth exponents are those of the last two sizes. `scoring` measures `predict` itself, on
images of 8x8 pixels with a network of two layers.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see run.py

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import MIB, Row, proc_status_kib, timed, trim_heap
from benchmarks.queries import STRATEGIES, Workload, draw_head, load_strategy
from benchmarks.run import machine_line, seconds
from sslpl.data.images import TensorImages
from sslpl.distributed.world import SINGLE_PROCESS
from sslpl.learn.inference import predict
from sslpl.learn.prediction_table import PredictionTable
from sslpl.query.context import Context, Weights
from sslpl.turns import ALONE
from sslpl.types import Features, Predictions

SCORING = "scoring"
NAMES = (
    *(SCORING, "random", "entropy", "predicted_loss", "selective_clustering", "cluster_margin"),
    *("core_set", "kmeans", "badge", "typiclust"),
)
WORKLOAD = Workload(labeled=1_000, dimensions=512, classes=100, n=1_000)
SMALL = Workload(labeled=20, dimensions=16, classes=5, n=20)
CANDIDATES = 15_000  # of the strategies that cluster
BLOCK = 8_192  # images generated at a time


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"options of conf/query; default: {', '.join(NAMES)}")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], help="unlabeled images")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB of private memory (default: %(default)s)")
    parser.add_argument("--override", nargs="*", default=[], help="arguments of the query, such as subset=10000")
    parser.add_argument("--threads", type=int, default=1, help="of torch and faiss (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the rows as one array")
    parser.add_argument("--small", action="store_true", help="few dimensions, only to check that it runs")
    return parser


def main() -> int:
    """Runs the benchmarks of the command line; returns 1 if a strategy failed."""
    arguments = parser().parse_args()
    if unknown := [name for name in arguments.names if name not in (SCORING, *STRATEGIES)]:
        parser().error(f"unknown: {', '.join(unknown)}; choose from {', '.join((SCORING, *STRATEGIES))}")
    workload = SMALL if arguments.small else WORKLOAD
    machine = f"{machine_line(torch.device('cpu'))}; {workload.n:,} images queried, {CANDIDATES:,} candidates"
    print(
        machine,
        "query | unlabeled | time | processor time | private MiB | resident MiB",
        sep="\n",
        flush=True,
    )
    points: dict[str, list[Row]] = {name: [] for name in arguments.names or NAMES}
    for size in arguments.sizes:
        pool = context(workload._replace(unlabeled=size))
        for name in points:
            points[name].append(measure_in_fork(name, pool, workload, arguments))
        del pool
        rows = [{"name": name, "machine": machine, "points": row} | exponents(row) for name, row in points.items()]
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']}: time ~ n^{row['seconds_exponent']}, private ~ n^{row['private_mib_exponent']}")
    return int(any("error" in point for row in rows for point in row["points"]))


def measure_in_fork(name: str, pool: Context, workload: Workload, arguments: argparse.Namespace) -> Row:
    """Returns the result of `measure` in a fork of this process, or its error if it fails or exceeds the limit."""
    row: Row = {"unlabeled": len(pool.unlabeled), "load_average": os.getloadavg()[0]}
    forks = get_context("fork")
    with ProcessPoolExecutor(1, forks, initializer=inherit, initargs=(pool, workload)) as executor:
        try:
            row |= executor.submit(measure, name, arguments.limit, arguments.threads, arguments.override).result()
        except Exception as error:  # go on with the other strategies
            row["error"] = repr(error)
    text = row.get("error") or " | ".join(
        (
            *(seconds(row[key]) for key in ("seconds", "processor_seconds")),
            *(f"{row[key]:,.0f}" for key in ("private_mib", "resident_mib")),
        )
    )
    print(f"{name} | {row['unlabeled']:,} | {text}", flush=True)
    return row


INHERITED: list[tuple[Context, Workload]] = []  # set in a fork, which shares large tensors without a copy


def inherit(pool: Context, workload: Workload) -> None:
    """Stores the pool and workload that the process was forked with."""
    INHERITED.append((pool, workload))


def measure(name: str, limit: float, threads: int, overrides: list[str]) -> Row:
    """Measures seconds and peak private and resident memory of one query."""
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
    pool, workload = INHERITED[0]
    prepare_call(name, context(workload._replace(unlabeled=400, labeled=20, n=20)), 20, overrides)()
    call = prepare_call(name, pool, workload.n, overrides)
    trim_heap()
    processor = time.process_time()
    with MemorySampler() as peak:
        took, _ = timed(call, 1, torch.device("cpu"))
    processor = time.process_time() - processor  # of all threads; hardly affected by other processes
    memory = {"private_mib": peak.private / MIB, "resident_mib": peak.resident / MIB}
    return {"seconds": took, "processor_seconds": processor} | memory


def prepare_call(name: str, pool: Context, n: int, overrides: list[str]) -> partial:
    """Returns the measured call, without arguments."""
    rng = torch.Generator().manual_seed(0)
    if name == SCORING:
        augmentation = SimpleNamespace(normalize=to_float)
        setup = SimpleNamespace(
            device=torch.device("cpu"), bfloat16=False, augmentation=augmentation, world=SINGLE_PROCESS, turns=ALONE
        )
        images = torch.randint(256, (len(pool.unlabeled), 1, 8, 8), generator=rng, dtype=torch.uint8)
        network = TwoLayers(pool.predictions.embedding.shape[1], pool.num_classes)
        return partial(predict, setup, network, None, TensorImages(images), torch.arange(len(images)))
    chosen = partial(
        load_strategy(name), **{key: json.loads(value) for key, value in (o.split("=") for o in overrides)}
    )
    return partial(chosen, pool, n, rng)


def to_float(images: Tensor) -> Tensor:
    """Returns pixels in 0..1."""
    return images.float().div_(255)


class TwoLayers(nn.Module):
    """A network of negligible cost."""

    def __init__(self, dimensions: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, dimensions), nn.Linear(dimensions, classes)

    def forward(self, images: Tensor) -> Features:
        embedding = self.body(images.flatten(1)).relu()
        return Features(self.head(embedding), (), embedding)


def context(workload: Workload) -> Context:
    """Returns a context with rectified embeddings around a center for each class, and the logits of random heads."""
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(workload.classes, workload.dimensions, generator=rng)
    heads = [draw_head(centers, rng) for _ in range(7)]  # of the current and previous backbone, and of snapshots
    pool, table = workload.labeled + workload.unlabeled, {}
    for part, count in (("labeled", workload.labeled), ("unlabeled", workload.unlabeled)):
        stored = PredictionTable(count)
        for start in range(0, count, BLOCK):
            classes = torch.randint(workload.classes, (min(BLOCK, count - start),), generator=rng)
            noise = torch.randn(len(classes), workload.dimensions, generator=rng)
            stored.append(centers[classes].add_(noise, alpha=1.5).relu_())
        table[part] = stored.whole()
    loss = torch.rand(pool, generator=rng)

    def predict(weights: Weights | None, index: Tensor) -> Predictions:
        used, logits = heads[0] if weights is None else weights, PredictionTable(len(index))
        embedding = table["labeled" if len(index) == workload.labeled else "unlabeled"]
        for part in embedding.split(BLOCK):
            logits.append(linear(part, used["head.weight"], used["head.bias"]))
        return Predictions(index, logits.whole(), embedding, loss[index])

    backbone = nn.ModuleDict({"head": nn.Linear(workload.dimensions, workload.classes)}).eval()
    backbone.load_state_dict(heads[0])
    unlabeled = torch.arange(workload.labeled, pool)
    return Context(
        unlabeled=unlabeled,
        labeled=torch.arange(workload.labeled),
        labels=torch.randint(workload.classes, (workload.labeled,), generator=rng),
        candidates=min(CANDIDATES, workload.unlabeled),
        num_classes=workload.classes,
        device=torch.device("cpu"),
        backbone=backbone,
        module=None,
        images=TensorImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
        normalize=to_float,
        augment=lambda images, _: to_float(images),
        predict=predict,
        cycle=1,
        precomputed=predict(None, unlabeled),
        previous_weights=heads[1],
        snapshots=heads[2:],
        truth=None,
    )


class MemorySampler:
    """Samples the private and resident memory of the process every 5 ms while entered, and keeps the peaks."""

    private = resident = 0  # bytes

    def __enter__(self) -> "MemorySampler":
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.sample()

    def sample(self) -> None:
        self.private = max(self.private, 1024 * (proc_status_kib("RssAnon") + proc_status_kib("RssShmem")))
        self.resident = max(self.resident, 1024 * proc_status_kib("VmRSS"))

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.sample()


def exponents(points: list[Row]) -> Row:
    """Returns the growth exponents of processor time and private memory between the last two sizes.

    The exponent of a time under 50 ms is None.
    """
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
