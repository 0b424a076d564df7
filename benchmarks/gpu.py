"""Measures all that needs a GPU, in one command: python benchmarks/gpu.py [--part NAME ...] [--json FILE].

Each part runs in a process of its own with a time limit, and its rows are appended to a file of JSON lines as they
come: a part that fails, hangs or is cut off costs none of the others. `--device cpu --small` rehearses every part
without a GPU; its figures mean nothing.
"""

import argparse
import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package

import torch
import yaml
from torch import nn

from benchmarks.measure import timed
from benchmarks.run import machine_line
from benchmarks.setups import SMALL, Sizes, make_setup, synthetic
from benchmarks.whole_runs import Silent, phase_seconds
from sslpl.budget import Budget
from sslpl.loop import initial_state, run_active_learning
from sslpl.models.fast_cnn import fast_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.phases.train import train
from sslpl.recording.status import read_status
from sslpl.run.interleaved import InterleavedRuns
from sslpl.runtime import Runtime
from sslpl.seeds import build_seeded
from sslpl.setup import Acceleration, Setup
from sslpl.training import Training
from sslpl.turns import Turns

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
CONCURRENT = (1, 2, 3, 5)  # runs at a time
KERNELS = 25  # rows of the profile
TIMES = ("_seconds", "_per_second", "_mib")  # the ends of the columns in which equal runs differ


class Options(NamedTuple):
    """What every part is measured with."""

    device: str
    small: bool
    root: str | None  # folder of CIFAR-100, for `protocol`

    @property
    def arguments(self) -> list[str]:
        """The same as arguments of this script and of benchmarks/run.py."""
        root = [] if self.root is None else ["--root", self.root]
        return ["--device", self.device, *root, *(["--small"] if self.small else [])]


class Part(NamedTuple):
    """A command to run and the seconds it may take, without which the others would wait for ever."""

    command: Callable[[Options], list[str]]
    limit: float


def script(name: str) -> Callable[[Options], list[str]]:
    """Returns the command that measures a part of this file."""
    return lambda options: [str(Path(__file__)), "--measure", name, *options.arguments]


def comparison(*names: str) -> Callable[[Options], list[str]]:
    """Returns the command that runs some of benchmarks/run.py."""
    return lambda options: [str(ROOT / "benchmarks" / "run.py"), *names, *options.arguments, "--json", "rows.json"]


def protocol(options: Options) -> list[str]:
    """Returns the command that runs the published protocol."""
    tiny = ["--pool", "600", "--cycles", "2", "--epochs", "2", "--finetune-epochs", "1"]
    return [*comparison("protocol")(options), *(tiny if options.small else [])]


def cuda_tests(_options: Options) -> list[str]:
    """Returns the command that runs the tests which need a GPU; without one they are skipped."""
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_cuda.py")]


def joint_setup(options: Options, **settings: Any) -> tuple[Setup, int, int]:
    """Returns a setup of ResNet-18 on synthetic images, the images of a step and the steps of an epoch."""
    size = (SMALL if options.small else Sizes()).batch
    steps = 2 if options.small else 64
    training = Training(epochs=10**6, batch_size=size, trim=False)
    device = Runtime(device=options.device).prepare()
    setup = make_setup(synthetic(size * steps, 8, 100), device, training, Budget(size * steps, 1, 1, 1.0))
    return setup._replace(**settings), size, steps


STEPS: dict[str, Acceleration] = {
    "captured": Acceleration(),
    "fused_norms": Acceleration(fused_norms=True),
    "copied_weights": Acceleration(copied_weights=True),
    "overlap": Acceleration(copied_weights=True, overlap=True),
    "without_overlap": Acceleration(fused_norms=True, copied_weights=True),
    "all": Acceleration(fused_norms=True, copied_weights=True, overlap=True),
}


def joint_step(options: Options) -> Iterator[Row]:
    """Times the joint step eagerly, as a CUDA graph with each acceleration, and compiled, augmentation included."""
    for name in ("eager", *(STEPS if options.device == "cuda" else ()), "compiled"):
        acceleration = STEPS.get(name, Acceleration())
        setup, size, steps = joint_setup(options, capture_steps=name in STEPS, acceleration=acceleration)
        state = initial_state(setup)
        if name == "compiled":
            state.backbone.compile(dynamic=False)
        training = train(setup, state)
        epoch = lambda: [next(training) for _ in range(steps)]  # noqa: B023, E731
        timed(epoch, 1, setup.device)  # warm-up, capture and compilation
        seconds, _ = timed(epoch, 1 if options.small else 5, setup.device)
        yield {"step": name, "step_seconds": seconds / steps, "images_per_second": size * steps / seconds}


def streams(options: Options) -> Iterator[Row]:
    """Times joint steps of several networks at once in one process, each on a stream of its own."""
    for name in ("captured", "without_overlap", "all") if options.device == "cuda" else ("captured",):
        runs = []
        for _ in range(max(CONCURRENT)):
            setup, size, steps = joint_setup(options, acceleration=STEPS[name])
            stream = torch.cuda.Stream() if options.device == "cuda" else None
            with torch.cuda.stream(stream):
                training = train(setup, initial_state(setup))
                runs.append((stream, training))
                for _ in range(steps):
                    next(training)
        alone = None
        for count in CONCURRENT:

            def epoch(count: int = count, steps: int = steps) -> None:
                for _ in range(steps):
                    for stream, training in runs[:count]:  # noqa: B023
                        with torch.cuda.stream(stream):
                            next(training)

            timed(epoch, 1, setup.device)
            seconds, _ = timed(epoch, 1 if options.small else 3, setup.device)
            speed = count * size * steps / seconds
            alone = alone or speed
            yield {"step": name, "networks": count, "images_per_second": speed, "times_one_network": speed / alone}


def profile(options: Options) -> Iterator[Row]:
    """Lists the kernels of an epoch of eager joint steps by their time on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    setup, _, steps = joint_setup(options, capture_steps=False)
    training = train(setup, initial_state(setup))
    epoch = lambda: [next(training) for _ in range(steps)]  # noqa: E731
    timed(epoch, 1, setup.device)
    cuda = options.device == "cuda"
    with profiled(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        timed(epoch, 1, setup.device)
    events = [
        {
            "kernel": event.key,
            "calls": event.count,
            "us": event.self_device_time_total if cuda else event.self_cpu_time_total,
        }
        for event in seen.key_averages()
    ]
    total = sum(event["us"] for event in events)
    for event in sorted(events, key=lambda event: event["us"], reverse=True)[:KERNELS]:
        yield {
            "kernel": event["kernel"][:200],
            "calls_per_step": event["calls"] / steps,
            "us_per_step": event["us"] / steps,
            "share": event["us"] / total,
        }


def run_command(options: Options, output: str, *settings: str) -> list[str]:
    """Returns the command of a short run on digits that is the same on every repetition."""
    schedule = ("training.epochs=3", "budget.cycles=3") if options.small else ("training.epochs=60", "budget.cycles=4")
    return [
        *(sys.executable, str(ROOT / "run.py"), "tracker=none", "runtime.progress=none", "budget.initial=100"),
        *(
            "budget.per_cycle=60",
            f"runtime.device={options.device}",
            f"runtime.output_dir={output}",
            *schedule,
            *settings,
        ),
    ]


def resume(options: Options) -> Iterator[Row]:
    """Kills a run in its second cycle, resumes it, and compares it with one that was left alone."""
    settings = ("runtime.deterministic=true", "runtime.checkpoint_minutes=0")
    with TemporaryDirectory(prefix="sslpl-gpu-") as name:
        whole, killed = (Path(name) / side for side in ("whole", "killed"))
        subprocess.run(run_command(options, str(whole), *settings), check=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(run_command(options, str(killed), *settings), stdout=subprocess.DEVNULL)
        while process.poll() is None and not in_second_cycle(killed):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        was_killed = process.wait() == -signal.SIGKILL
        subprocess.run(run_command(options, str(killed), *settings), check=True, stdout=subprocess.DEVNULL)
        yield {"killed": was_killed, "identical": results(whole) == results(killed)}


def in_second_cycle(folder: Path) -> bool:
    """True once the only run below a folder trains in its second cycle."""
    statuses = [read_status(path.parent) for path in folder.glob("**/status.json")]
    return any((status.get("cycle"), status.get("phase")) == (1, "train") for status in statuses)


def results(folder: Path) -> list[Any]:
    """Returns what the only run below a folder selected and measured, apart from times and memory."""
    (queries,), (metrics,) = folder.glob("**/queries.csv"), folder.glob("**/metrics.csv")
    rows = csv.DictReader(metrics.read_text().splitlines())
    return [queries.read_text(), [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]]


def concurrent(options: Options) -> Iterator[Row]:
    """Times several equal runs at once on one device, each in a process of its own."""
    alone = None
    for count in CONCURRENT[:2] if options.small else CONCURRENT:
        with TemporaryDirectory(prefix="sslpl-gpu-") as name:
            since = time.perf_counter()
            commands = [run_command(options, name, f"seed={seed}") for seed in range(count)]
            processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
            codes = [process.wait() for process in processes]
            seconds = time.perf_counter() - since
        if any(codes):
            raise RuntimeError(f"{count} runs at a time: exit codes {codes}")
        alone = alone or seconds
        yield {"runs": count, "seconds": seconds, "times_one_run": seconds / alone}


def interleaved(options: Options) -> Iterator[Row]:
    """Times several runs at once on one device in one process: joint steps of ResNet-18, then equal runs on digits."""
    counts = CONCURRENT[:2] if options.small else CONCURRENT
    for count in counts:
        seconds, images = interleaved_steps(options, count)
        yield {"runs": count, "images_per_second": images / seconds}
    alone = None
    for count in counts:
        with TemporaryDirectory(prefix="sslpl-gpu-") as name:
            launcher = ("hydra/launcher=interleaved", f"hydra.launcher.at_once={count}")
            seeds = f"seed={','.join(map(str, range(count)))}"
            since = time.perf_counter()
            subprocess.run(run_command(options, name, *launcher, seeds, "-m"), check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - since
        alone = alone or seconds
        yield {"runs": count, "seconds": seconds, "times_one_run": seconds / alone}


def interleaved_steps(options: Options, count: int) -> tuple[float, int]:
    """Returns the seconds in which several interleaved trainings, warmed up, see a number of images together."""
    runs, epochs = InterleavedRuns({}, Turns(count)), 1 if options.small else 3
    is_warm = threading.Barrier(count)

    def work(_: int) -> tuple[float, float, int]:
        with runs.turns.joined(), runs.own_stream(options.device):
            setup, size, steps = joint_setup(options, capture_steps=options.device == "cuda")
            setup = setup.with_turns(runs.turns)
            training = train(setup, initial_state(setup))
            for step in range((1 + epochs) * steps):
                if step == steps:
                    with runs.turns.away():
                        is_warm.wait()
                    since = time.perf_counter()
                next(training)  # waits for the device at the end of an epoch
                runs.turns.pass_on()
            return since, time.perf_counter(), size * steps * epochs

    with ThreadPoolExecutor(count) as threads:
        starts, ends, images = zip(*threads.map(work, range(count)), strict=True)
    return max(ends) - min(starts), sum(images)


def fast_training(small: bool) -> Training:
    """Returns the options of training=fast."""
    values: Row = {}
    for name in ("published", "fast"):
        values |= yaml.safe_load((ROOT / "conf" / "training" / f"{name}.yaml").read_text())
    values = {key: value for key, value in values.items() if key not in ("defaults", "_target_")}
    return Training(**values | ({"epochs": 1, "min_steps": 4, "finetune_epochs": 1} if small else {}))


def fast_recipe(options: Options) -> Iterator[Row]:
    """Times the phases of experiment=cifar10_fast on synthetic images of CIFAR-10's shape, eager and captured."""
    device = Runtime(device=options.device).prepare()
    pool, labels, cycles = (400, 40, 2) if options.small else (50_000, 2_500, 6)
    dataset = synthetic(pool, pool // 5, 10)
    training, budget = fast_training(options.small), Budget(labels, labels, cycles, pool // 2)
    for capture in (False, True) if options.device == "cuda" else (False,):
        setup = make_setup(dataset, device, training, budget)._replace(capture_steps=capture)
        sample = setup.augmentation.normalize(setup.dataset.train.data[:1024].to(device)).cpu()

        def build(cycle: int) -> tuple[nn.Module, nn.Module]:
            backbone = build_seeded(
                lambda: fast_cnn(num_classes=10, in_channels=3, sample=sample),  # noqa: B023
                0,
                f"backbone {cycle}",
            )
            module = build_seeded(lambda: LossPredictionModule(backbone.channels), 0, f"module {cycle}")
            return backbone.to(device, memory_format=torch.channels_last), module.to(device)

        setup = setup._replace(build=build)
        since = time.perf_counter()
        state = run_active_learning(setup, initial_state(setup), Silent())
        seconds = time.perf_counter() - since
        yield {"captured": capture, "seconds": seconds, "last_accuracy": state.history[-1]["test_accuracy"]} | {
            f"{phase}_seconds": took for phase, took in phase_seconds(state).items()
        }


MEASURES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "resume": resume,
    "profile": profile,
    "joint_step": joint_step,
    "streams": streams,
    "concurrent": concurrent,
    "interleaved": interleaved,
    "fast_recipe": fast_recipe,
}
PARTS: dict[str, Part] = {
    "tests": Part(cuda_tests, 240),
    "resume": Part(script("resume"), 120),
    "profile": Part(script("profile"), 90),
    "joint_step": Part(script("joint_step"), 180),
    "streams": Part(script("streams"), 90),
    "conventional": Part(comparison("augment_weak", "augment_pair", "joint_step", "finetune_step", "module_step"), 180),
    "clustering": Part(comparison("clustering_10000", "pool_scoring"), 90),
    "fast_recipe": Part(script("fast_recipe"), 120),
    "concurrent": Part(script("concurrent"), 180),
    "interleaved": Part(script("interleaved"), 180),
    "protocol": Part(protocol, 600),
}


def run_part(name: str, options: Options, record: Callable[[Row], None]) -> bool:
    """Runs a part and records its rows as they come, then its time and exit code; returns whether it succeeded."""
    part = PARTS[name]
    since = time.perf_counter()
    with TemporaryDirectory(prefix="sslpl-gpu-") as folder:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        }
        process = subprocess.Popen(
            [sys.executable, *part.command(options)],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=read_lines, args=(process, lines), daemon=True).start()
        last = ""
        while True:
            try:
                line = lines.get(timeout=max(0.0, since + part.limit - time.perf_counter()))
            except queue.Empty:
                os.killpg(process.pid, signal.SIGKILL)
                record({"part": name, "error": f"stopped after {part.limit:.0f} s"})
                return False
            if line is None:
                break
            if line.startswith("{"):
                record({"part": name} | json.loads(line))
            else:
                print(line, flush=True)
                last = line or last
        rows = Path(folder) / "rows.json"
        for row in json.loads(rows.read_text()) if rows.exists() else []:
            record({"part": name} | row)
        code = process.wait()
    record({"part": name, "exit_code": code, "seconds": round(time.perf_counter() - since, 1), "last_line": last})
    return code == 0


def read_lines(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    """Puts the lines that a process prints into a queue, and None at their end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip())
    lines.put(None)


def main() -> int:
    """Runs the parts of the command line; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu.jsonl"), help="default: %(default)s, which is appended to"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument("--root", help="folder of CIFAR-100 for protocol (default: synthetic images of its shape)")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device was found; rehearse with --device cpu --small")
    options = Options(arguments.device, arguments.small, arguments.root and str(Path(arguments.root).resolve()))
    if arguments.measure is not None:
        for row in MEASURES[arguments.measure](options):
            print(json.dumps(row), flush=True)
        return 0
    machine = machine_line(torch.device(arguments.device))
    print(machine)
    with arguments.json.open("a") as file:

        def record(row: Row) -> None:
            file.write(json.dumps(row | {"machine": machine}) + "\n")
            file.flush()
            print(
                "  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, list | dict)),
                flush=True,
            )

        failed = [name for name in arguments.part if not run_part(name, options, record)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
