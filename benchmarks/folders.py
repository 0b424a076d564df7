"""Measures a cycle on images streamed from disk: python benchmarks/folders.py [--images 20000] [--size 224].

Writes JPEG files of 256x256 pixels to a temporary folder, ten classes of blurred colors with noise, and runs
dataset=image_folder without holding any image in memory. For each phase it prints the number of images loaded, images
per second and the share of time spent waiting for them; then the peak memory of the process.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package

import numpy as np
from PIL import Image

from sslpl import loop
from sslpl.data.images import StreamedImages, usable_cores
from sslpl.run import cli

CLASSES, SIDE, TEST = 10, 256, 0.05
seconds: Counter[str] = Counter()
waiting_seconds: Counter[str] = Counter()
images_loaded: Counter[str] = Counter()
current_phase = ["build"]


def write_images(root: Path, count: int) -> None:
    """Writes a pool of `count` images, and a twentieth as many test images."""
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


def instrument_phases() -> None:
    """Patches the loop to record the seconds of each phase, and of its waiting for images."""

    def timed(name: str, run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def timed_phase(setup: Any, state: Any) -> Iterator[Any]:
            current_phase[0], since = name, time.perf_counter()
            yield from run(setup, state)
            seconds[name] += time.perf_counter() - since
            print(f"so far {phase_row(name)}, {peak_gib():.2f} GiB", flush=True)

        return timed_phase

    for name, run in list(loop.PHASES.items()):
        loop.PHASES[name] = timed(name, run)
    batches = StreamedImages.batches

    def timed_batches(images: StreamedImages, indices: Any) -> Iterator[Any]:
        iterator, end = batches(images, indices), object()
        while True:
            since = time.perf_counter()
            batch = next(iterator, end)
            waiting_seconds[current_phase[0]] += time.perf_counter() - since
            if batch is end:
                return
            images_loaded[current_phase[0]] += len(batch)
            yield batch

    StreamedImages.batches = timed_batches  # type: ignore[method-assign]


def main() -> int:
    """Writes the images, runs two cycles (the first with all phases) and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="images of the pool (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels (default: %(default)s)")
    parser.add_argument("--backbone", default="resnet18", help="default: %(default)s")
    parser.add_argument("--labels", type=int, default=1000, help="initial labels (default: %(default)s)")
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
        instrument_phases()
        since = time.perf_counter()
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                return int(end.code)
        print_rows(time.perf_counter() - since)
    return 0


def print_rows(total: float) -> None:
    """Prints the table of phases, the load of the machine and the peak memory."""
    print(f"\n{'phase':10}{'seconds':>10}{'images':>10}{'images/s':>10}{'waited':>10}")
    print("\n".join(phase_row(name) for name in seconds))
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"in all {total:.0f} s on {load}; peak memory {peak_gib():.2f} GiB")


def phase_row(name: str) -> str:
    """Returns the row of a phase in the table."""
    rate, share = images_loaded[name] / seconds[name], waiting_seconds[name] / seconds[name]
    return f"{name:10}{seconds[name]:10.1f}{images_loaded[name]:10,}{rate:10.0f}{share:10.1%}"


def peak_gib() -> float:
    """Returns the peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main())
