"""Measures a cycle on images that stream from disk: python benchmarks/folders.py [--images 20000] [--size 224].

Writes JPEG files of 256x256 pixels into a temporary folder, ten classes of blurred colors under noise, and runs
dataset=image_folder with none of them held in memory. Of each phase it prints how many images were delivered, how many
a second, and how much of its time the network waited for them; and the highest memory of the process.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measures the checkout that it lies in

import numpy as np
from PIL import Image

from sslpl import loop
from sslpl.data.images import StreamedImages, usable_cores
from sslpl.run import cli

CLASSES, SIDE, TEST = 10, 256, 0.05
seconds: Counter[str] = Counter()
waited: Counter[str] = Counter()
delivered: Counter[str] = Counter()
phase = ["build"]


def write_images(root: Path, count: int) -> None:
    """A pool of `count` images and a twentieth as many to test."""
    noise = np.random.default_rng(0).normal(0, 12, (64, SIDE, SIDE, 3)).astype(np.int16)
    colors = np.random.default_rng(1).integers(40, 216, (CLASSES, 4, 4, 3))

    def write(job: tuple[str, int]) -> None:
        part, number = job
        rng = np.random.default_rng([number, part == "test"])
        small = (colors[number % CLASSES] + rng.normal(0, 40, (4, 4, 3))).clip(0, 255).astype(np.uint8)
        smooth = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = (np.asarray(smooth) + noise[rng.integers(len(noise))]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / part / f"class_{number % CLASSES}" / f"{number:06}.jpg", quality=85)

    jobs = [("train", number) for number in range(count)] + [("test", number) for number in range(int(count * TEST))]
    for part in ("train", "test"):
        for label in range(CLASSES):
            (root / part / f"class_{label}").mkdir(parents=True)
    with ThreadPoolExecutor(usable_cores()) as threads:
        list(threads.map(write, jobs))


def watch_phases() -> None:
    """Notes how long each phase takes and how long it waits for images."""

    def timed(name: str, run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def phase_of(setup: Any, state: Any) -> Iterator[Any]:
            phase[0], since = name, time.perf_counter()
            yield from run(setup, state)
            seconds[name] += time.perf_counter() - since
            print(f"so far {line(name)}, {peak_gib():.2f} GiB", flush=True)

        return phase_of

    for name, run in list(loop.PHASES.items()):
        loop.PHASES[name] = timed(name, run)
    batches = StreamedImages.batches

    def waiting(images: StreamedImages, indices: Any) -> Iterator[Any]:
        arriving, done = batches(images, indices), object()
        while True:
            since = time.perf_counter()
            batch = next(arriving, done)
            waited[phase[0]] += time.perf_counter() - since
            if batch is done:
                return
            delivered[phase[0]] += len(batch)
            yield batch

    StreamedImages.batches = waiting  # type: ignore[method-assign]


def main() -> int:
    """Writes the images, runs two cycles of which the first is whole, prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="of the pool (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels that the network sees (default: %(default)s)")
    parser.add_argument("--backbone", default="resnet18", help="default: %(default)s")
    parser.add_argument("--labels", type=int, default=1000, help="to begin with (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", help="further overrides of the run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sslpl-images-") as folder:
        since, root = time.perf_counter(), Path(folder, "images")
        write_images(root, arguments.images)
        print(f"wrote {arguments.images:,} images in {time.perf_counter() - since:.0f} s", flush=True)
        sys.argv[1:] = [
            *("dataset=image_folder", f"dataset.root={root}", f"dataset.size={arguments.size}", "runtime.held_gib=0"),
            *(f"dataset.resize={arguments.size * 8 // 7}", f"backbone={arguments.backbone}", "training.epochs=2"),
            *("training.rate=0.01", "training.module_rate=0.005"),  # a dozen steps at 0.1 diverge
            *("training.finetune_epochs=1", f"budget.initial={arguments.labels}", "budget.cycles=2"),
            *(f"budget.per_cycle={arguments.labels // 2}", f"budget.candidates={min(5000, arguments.images // 4)}"),
            *("tracker=none", "runtime.progress=plain", f"runtime.output_dir={folder}/outputs", *arguments.overrides),
        ]
        watch_phases()
        since = time.perf_counter()
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                return int(end.code)
        show(time.perf_counter() - since)
    return 0


def show(total: float) -> None:
    """Prints what was measured."""
    print(f"\n{'phase':10}{'seconds':>10}{'images':>10}{'images/s':>10}{'waited':>10}")
    print("\n".join(line(name) for name in seconds))
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"in all {total:.0f} s on {load}; peak memory {peak_gib():.2f} GiB")


def line(name: str) -> str:
    """What was measured of a phase."""
    rate, share = delivered[name] / seconds[name], waited[name] / seconds[name]
    return f"{name:10}{seconds[name]:10.1f}{delivered[name]:10,}{rate:10.0f}{share:10.1%}"


def peak_gib() -> float:
    """Highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main())
