"""Measures on a CPU what its ways of convolving and bfloat16 gain: python benchmarks/cpu_convolutions.py [--small].

Processor time of one thread, medians of calls in turn, so that other work on the machine counts for little. `packed` is
measured on any CPU, but used only with AMX; see `sslpl/models/cpu_convolution.py`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch import nn
from torch.nn import functional

from benchmarks.hot_paths import UNLIMITED, next_step
from benchmarks.measure import print_table
from benchmarks.run import machine_line
from benchmarks.setups import make_setup, synthetic
from sslpl.budget import Budget
from sslpl.loop import initial_state
from sslpl.models import convolution, cpu_convolution
from sslpl.models.backbone import small_cnn
from sslpl.models.fast_cnn import fast_cnn
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.resnet import resnet18
from sslpl.phases.train import train
from sslpl.runtime import Runtime
from sslpl.seeds import build_seeded
from sslpl.training import Training

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
CASES = (  # network, channels, side
    (resnet18, 3, 32),
    (resnet18, 1, 28),
    (fast_cnn, 3, 32),
    (small_cnn, 1, 28),
    (small_cnn, 1, 8),
)


def library_convolution(images, weight, stride, padding):
    """Convolves as torch does."""
    return functional.conv2d(images, weight, None, stride, padding)


@contextmanager
def ways(packed: bool, library: bool = False, fused: bool = True) -> Iterator[None]:
    """Context manager that chooses how convolutions are computed."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cpu_convolution, "HAS_AMX", packed))
        if library:
            stack.enter_context(mock.patch.object(convolution, "convolve", library_convolution))
        if not fused:
            stack.enter_context(mock.patch.object(cpu_convolution, "fused_operators_work", return_value=False))
        yield


def joint_step(build: Callable[..., nn.Module], channels: int, side: int, batch: int, bfloat16: bool):
    """Returns a function that takes the next step of joint training."""
    dataset = synthetic(4 * batch, 8, 10, (channels, side, side))
    training = Training(epochs=UNLIMITED, batch_size=batch, trim=False)
    setup = make_setup(dataset, CPU, training, Budget(4 * batch, 1, 1, 1.0))

    def networks(_cycle: int) -> tuple[nn.Module, nn.Module]:
        backbone = build_seeded(lambda: build(num_classes=10, in_channels=channels), 0, "backbone")
        module = build_seeded(lambda: LossPredictionModule(backbone.channels), 0, "module")
        return backbone.to(memory_format=torch.channels_last), module

    setup = setup._replace(build=networks, bfloat16=bfloat16)
    return next_step(train(setup, initial_state(setup)))


def frozen_forward(side: int, batch: int, bfloat16: bool):
    """Returns a function that forwards a batch through a frozen ResNet-18."""
    torch.manual_seed(0)
    network = resnet18(num_classes=10, in_channels=3).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    network.train()(images[:64])
    frozen = FrozenBackbone(network, bfloat16)
    return torch.inference_mode()(lambda: frozen(images))


def compare(calls: dict[str, Callable[[], object]], repeats: int) -> list[str]:
    """Returns the median processor milliseconds of calls that are made in turn, and by what the first is slower."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, repeats):
        for name, call in calls.items():
            since = time.process_time()
            call()
            if turn >= 0:
                took[name].append(1e3 * (time.process_time() - since))
    medians = {name: statistics.median(times) for name, times in took.items()}
    first = next(iter(medians.values()))
    return [f"{name} {median:,.1f} ms ({first / median:.2f}x)" for name, median in medians.items()]


def within(context: Callable[[], AbstractContextManager[None]], call: Callable[[], object]) -> Callable[[], object]:
    """Returns a function that makes a call in a context."""

    def run() -> object:
        with context():
            return call()

    return run


def main() -> int:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images of a joint step (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that everything runs")
    arguments = parser.parse_args()
    Runtime(device="cpu").prepare()
    torch.set_num_threads(1)
    batch, cases, scored = (8, CASES[-1:], 8) if arguments.small else (arguments.batch, CASES, 256)
    trained = {
        "library": lambda: ways(packed=False, library=True),
        "products": lambda: ways(packed=False),
        "packed": lambda: ways(packed=True),
    }
    frozen = {
        "plain": lambda: ways(packed=False, fused=False),
        "fused": lambda: ways(packed=False),
        "packed": lambda: ways(packed=True),
    }
    rows = []
    for build, channels, side in cases:
        name = f"{build.__name__} {side}x{side}"
        precisions = {kind: joint_step(build, channels, side, batch, kind == "bfloat16") for kind in PRECISIONS}
        rows.append([f"joint step, {name}", *compare(precisions, arguments.repeats)])
        steps = {way: within(context, precisions["bfloat16"]) for way, context in trained.items()}
        rows.append([f"joint step, {name}, bfloat16", *compare(steps, arguments.repeats)])
        print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    for kind in PRECISIONS:
        side = 8 if arguments.small else 32
        forward = frozen_forward(side, scored, kind == "bfloat16")
        passes = {way: within(context, forward) for way, context in frozen.items()}
        rows.append([f"frozen resnet18, {scored} images {side}x{side}, {kind}", *compare(passes, arguments.repeats)])
        print(rows[-1], file=sys.stderr, flush=True)
    rows = [row + [""] * (4 - len(row)) for row in rows]
    print_table(("", "", "", ""), rows, "processor time, medians", machine_line(CPU), width=160)
    return 0


if __name__ == "__main__":
    sys.exit(main())
