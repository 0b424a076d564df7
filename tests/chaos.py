"""Kills real runs and sweeps and compares them with undisturbed ones: python tests/chaos.py --kills 20.

`--mask-kills 20` kills as many runs of each network with random layers: dropout, drop path.

Each run is killed with signal 9 (at a random moment, or by itself at a named one), started again with the same
command, and must end with the same metrics, ledger, status, files and weights; so must a run that waits for labels. A
sweep is killed three times and started again, and two processes share one.
"""

import argparse
import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["training.batch_size=32", "tracker=none", "runtime.num_threads=1", "runtime.progress=plain"]
RUN = [
    "training.epochs=8",
    "training.finetune_epochs=3",
    "budget.cycles=4",
    "runtime.checkpoint_minutes=0.002",
    *COMMON,
]
RANDOM_LAYERS = {  # networks with random layers
    "dropout": [
        *("backbone.dropout=0.3", "budget.cycles=2", "training.epochs=8", "training.finetune_epochs=2"),
        *("runtime.checkpoint_minutes=0.002", *COMMON),
    ],
    "drop path": [
        *("backbone=torchvision", "backbone.name=efficientnet_b0", "training.rate=0.01", "budget.initial=48"),
        *("budget.per_cycle=32", "budget.cycles=2", "training.epochs=2", "training.finetune_epochs=1"),
        *("runtime.checkpoint_minutes=0.005", *COMMON),
    ],
}
SWEEP = ["-m", "seed=range(6)", "method=entropy,random", "training.epochs=4", "budget.cycles=3", *COMMON]
JOBS = 12
MEASURED_COLUMNS = ("_seconds", "_per_second", "_mib")  # columns of metrics.csv that differ between equal runs
DEADLINE = 600  # seconds that one process may take


def kill_self() -> None:
    """Ends this process as abruptly as a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before_call(module: Any, name: str, call: int) -> None:
    """Patches a function of a module to kill the process at one of its calls (from 1)."""
    function, calls = getattr(module, name), Counter[str]()

    def patched(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        if calls[name] == call:
            kill_self()
        return function(*arguments, **options)

    setattr(module, name, patched)


def kill_while_writing(file: str, call: int) -> None:
    """Patches the writing of a file to kill the process when half of it has been written."""
    from sslpl import files
    from sslpl.recording import checkpoint, recorder

    calls = Counter[str]()
    for module in (checkpoint, recorder, files):
        whole = module.write_whole

        def half(path: Path, content: str | bytes, durable: bool = True, whole: Callable[..., None] = whole) -> None:
            calls[path.name] += 1
            if path.name == file and calls[file] == call:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
                data = content.encode() if isinstance(content, str) else content
                partial.write_bytes(data[: len(data) // 2])
                kill_self()
            whole(path, content, durable)

        module.write_whole = half  # type: ignore[assignment]


def arm_kill(name: str) -> None:
    """Patches this process to kill itself at a named moment."""
    from sslpl.phases import finetune, label
    from sslpl.recording import checkpoint, recorder
    from sslpl.run import execute

    chosen: dict[str, Callable[[], None]] = {
        "between query and label": lambda: kill_before_call(label, "ask_oracle", 2),
        "while writing a checkpoint": lambda: kill_while_writing(checkpoint.CURRENT, 4),
        "while writing metrics.csv": lambda: kill_while_writing("metrics.csv", 2),
        "while writing status.json": lambda: kill_while_writing("status.json", 7),
        "during the fine-tune": lambda: kill_before_call(finetune, "finetune_step", 17),
        "between a checkpoint and its tables": lambda: kill_before_call(recorder.run_tables, "metrics_csv", 3),
        "before the last weights": lambda: kill_before_call(checkpoint, "save_model", 1),
        "between the last weights and the status": lambda: kill_before_call(checkpoint, "discard", 1),
        "before the first epoch": lambda: kill_before_call(execute, "run_active_learning", 1),
    }
    chosen[name]()


NAMED_MOMENTS = (
    *("between query and label", "while writing a checkpoint", "while writing metrics.csv"),
    *("while writing status.json", "during the fine-tune", "between a checkpoint and its tables"),
    *("before the last weights", "between the last weights and the status", "before the first epoch"),
)


class ProcessResult(NamedTuple):
    """Exit code and output of a process."""

    code: int
    log: str


def start(folder: Path, options: list[str], kill_at: str | None = None) -> subprocess.Popen[str]:
    """Starts the command in a folder; with `kill_at`, one that kills itself at a named moment."""
    folder.mkdir(exist_ok=True)
    head = [str(ROOT / "run.py")] if kill_at is None else [__file__, "--kill-at", kill_at, "--"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *head, *options], cwd=folder, env=environment, **pipes)


def run_process(
    folder: Path, options: list[str], kill_after: float | None = None, kill_at: str | None = None
) -> ProcessResult:
    """Runs the command to its end, or kills it after some seconds."""
    process = start(folder, options, kill_at)
    try:
        log, _ = process.communicate(timeout=DEADLINE if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        log, _ = process.communicate()
        if kill_after is None:
            sys.exit(f"chaos: no end within {DEADLINE} s\n{log}")
    return ProcessResult(process.returncode, log)


def await_checkpoint(folder: Path, process: subprocess.Popen[str]) -> float:
    """Waits for the first checkpoint of a run, or for its end; returns the time then."""
    while process.poll() is None and not any(folder.glob("outputs/**/checkpoint/*.ckpt")):
        time.sleep(0.02)
    return time.monotonic()


def run_timed(folder: Path, options: list[str]) -> tuple[ProcessResult, float]:
    """Runs the command to its end; returns also its seconds after the first checkpoint."""
    process = start(folder, options)
    start_time = await_checkpoint(folder, process)
    log, _ = process.communicate(timeout=DEADLINE)
    return ProcessResult(process.returncode, log), time.monotonic() - start_time


def run_and_kill(folder: Path, options: list[str], seconds: float) -> ProcessResult:
    """Kills a process some seconds after its first checkpoint, unless it has ended by then."""
    process = start(folder, options)
    await_checkpoint(folder, process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    process.kill()
    log, _ = process.communicate()
    return ProcessResult(process.returncode, log)


def result(folder: Path) -> dict[str, object]:
    """Reads what equal runs have in common: the metrics without times, the ledger, status, files and weights."""
    import torch

    (run,) = (path.parent for path in folder.glob("outputs/**/status.json"))
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.endswith(MEASURED_COLUMNS)} for row in csv.DictReader(file)]
    networks = torch.load(run / "checkpoint/weights.pt", weights_only=True)
    return {
        "metrics.csv": rows,
        "queries.csv": (run / "queries.csv").read_bytes(),
        "status.json": (run / "status.json").read_text(),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
        "weights": [tensor.tolist() for name in ("backbone", "module") for tensor in networks[name].values()],
    }


def killed_and_resumed(
    folder: Path, options: list[str], moment: float | str, expected: dict[str, object]
) -> tuple[bool, str]:
    """Kills a run and finishes it by the same command; returns whether it equals the expected one, and a message."""
    while True:
        if isinstance(moment, str):
            killed = run_process(folder, options, kill_at=moment)
        else:
            killed = run_and_kill(folder, options, moment)
        if killed.code == -signal.SIGKILL:
            break
        if isinstance(moment, str) or killed.code != 0:
            return False, f"was not killed but ended with {killed.code}: {killed.log[-2000:]}"
        moment /= 2  # the run finished first
        folder = folder.with_name(f"{folder.name}-again")
    second = run_process(folder, options)
    if second.code != 0:
        return False, f"the resumed process ended with {second.code}: {second.log[-2000:]}"
    found = result(folder)
    differing = [what for what, value in expected.items() if found[what] != value]
    resumed = re.search(r"^(resumed at .*|finished already)", second.log, re.MULTILINE)
    message = resumed.group(1) if resumed else "started again"
    return not differing, message if not differing else f"{message}; differs: {', '.join(differing)}"


def check_kills(scratch: Path, options: list[str], count: int, seed: int, chosen: tuple[str, ...] = ()) -> bool:
    """True if all of `count` killed runs equal an undisturbed one: killed at the named moments, then at random ones
    after the first checkpoint."""
    scratch.mkdir()
    whole, seconds = run_timed(scratch / "whole", options)
    if whole.code != 0:
        sys.exit(f"chaos: the undisturbed run ended with {whole.code}\n{whole.log}")
    expected, generator = result(scratch / "whole"), random.Random(seed)
    moments = [*chosen, *(generator.random() * seconds for _ in range(count - len(chosen)))]

    def check_kill(number: int) -> bool:
        same, message = killed_and_resumed(scratch / f"killed{number}", options, moments[number], expected)
        moment = moments[number]
        when = moment if isinstance(moment, str) else f"{moment:.1f} s after the first checkpoint"
        print(f"{'identical' if same else 'DIFFERENT'}  killed {when}: {message}", flush=True)
        return same

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as workers:
        same = sum(workers.map(check_kill, range(count)))
    print(f"{same} of {count} identical to the uninterrupted run", flush=True)
    return same == count


def check_random_layers(scratch: Path, count: int, seed: int) -> bool:
    """True if killed runs of networks with random layers equal undisturbed ones."""
    passed = []
    for name, options in RANDOM_LAYERS.items() if count else ():
        print(f"{name}:", flush=True)
        passed.append(check_kills(scratch / name.replace(" ", "_"), options, count, seed))
    return all(passed)


def finished_runs(folder: Path) -> dict[str, int]:
    """Returns the time of the weights of each finished run; one killed before its status rewrites them."""
    finished = [path.parent for path in folder.glob("outputs/**/status.json") if '"finished"' in path.read_text()]
    return {run.name: (run / "checkpoint" / "weights.pt").stat().st_mtime_ns for run in finished}


def state_counts(log: str) -> Counter[str]:
    """Reads the counts of states below the table of a sweep; lines of other processes may follow it."""
    counts = [line for line in log.splitlines() if re.fullmatch(r"\d+ \w+(, \d+ \w+)*", line)]
    return Counter({state: int(number) for number, state in re.findall(r"(\d+) (\w+)", counts[-1] if counts else "")})


def check_killed_sweep(scratch: Path) -> bool:
    """True if a sweep that was killed three times is completed without training a finished run again."""
    folder, before = scratch / "sweep", dict[str, int]()
    for finished in (2, 5, 9):
        process, start_time = start(folder, SWEEP), time.monotonic()
        while len(finished_runs(folder)) < finished and time.monotonic() - start_time < DEADLINE:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        now = finished_runs(folder)
        if not finished <= len(now) < JOBS or any(now[run] != at for run, at in before.items()):
            print(f"DIFFERENT  sweep: {len(now)} runs finished where {finished} were awaited, or one was trained again")
            return False
        before = now
    last = run_process(folder, SWEEP)
    now, counts = finished_runs(folder), state_counts(last.log)
    untouched = all(now[run] == at for run, at in before.items()) and counts["skipped"] == len(before)
    passed = last.code == 0 and len(now) == JOBS and untouched
    print(f"{'complete' if passed else 'INCOMPLETE'}  sweep of {JOBS} runs killed 3 times: at last {dict(counts)}")
    start_time = time.monotonic()
    again = run_process(folder, SWEEP)
    repeat_seconds = time.monotonic() - start_time
    print(f"the finished sweep again: {repeat_seconds:.1f} s with process start, {dict(state_counts(again.log))}")
    return passed and again.code == 0 and state_counts(again.log) == {"skipped": JOBS}


def check_shared_sweep(scratch: Path) -> bool:
    """True if two processes with the same sweep complete it together, without running anything twice."""
    folder = scratch / "shared"
    with ThreadPoolExecutor(max_workers=2) as workers:
        results = list(workers.map(lambda _: run_process(folder, SWEEP), range(2)))
    counts = [state_counts(ended.log) for ended in results]
    passed = all(ended.code == 0 for ended in results) and sum(count["finished"] for count in counts) == JOBS
    passed = passed and len(finished_runs(folder)) == JOBS and all(count.total() == JOBS for count in counts)
    print(f"{'shared' if passed else 'NOT SHARED'}  {JOBS} runs in two processes: {[dict(count) for count in counts]}")
    if not passed:
        print(*(ended.log[-3000:] for ended in results), sep="\n---\n")
    return passed


def write_labels(batch: Path) -> None:
    """Writes the true labels of a batch of digits."""
    from sslpl.data.datasets import digits

    with (batch / "to_label.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    truth = digits().train_labels
    rows = [f"{path},{int(truth[int(path.removesuffix('.png'))])}" for path in paths]
    (batch / "labels.csv").write_text("\n".join(["path,label", *rows]))


def check_killed_campaign(scratch: Path, seed: int) -> bool:
    """True if a run that waits for labels four times, killed in each of its processes, equals one with known labels."""
    folder, generator, start_time = scratch / "campaign", random.Random(seed), time.monotonic()
    reference = run_process(scratch / "reference", RUN)
    seconds, hidden = (time.monotonic() - start_time) / 4, ("loss_rank_correlation", "pseudo_label_accuracy")
    if reference.code != 0:
        sys.exit(f"chaos: the undisturbed run ended with {reference.code}\n{reference.log}")
    for cycle in range(5):
        run_process(folder, [*RUN, "oracle=file"], kill_after=generator.uniform(0.3, 1.0) * seconds)
        process_result = run_process(folder, [*RUN, "oracle=file"])
        if process_result.code != 0:
            print(f"DIFFERENT  campaign: ended with {process_result.code}: {process_result.log[-2000:]}")
            return False
        for batch in folder.glob(f"outputs/**/labeling/cycle{cycle}"):
            write_labels(batch)
    contents = [result(part) for part in (scratch / "reference", folder)]
    for content in contents:
        content["metrics.csv"] = [{k: v for k, v in row.items() if k not in hidden} for row in content["metrics.csv"]]  # type: ignore[attr-defined]
    differing = [what for what in ("metrics.csv", "queries.csv", "weights") if contents[0][what] != contents[1][what]]
    print(
        f"{'identical' if not differing else 'DIFFERENT'}  campaign killed 5 times {', '.join(differing)}", flush=True
    )
    return not differing


def main() -> None:
    """Runs all checks; exits with 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill, half of them at chosen moments")
    parser.add_argument("--mask-kills", type=int, default=3, help="runs to kill of each network with random layers")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--no-sweeps", action="store_true", help="skip the sweeps")
    parser.add_argument("--kill-at", help=argparse.SUPPRESS)  # the moment at which this process is to kill itself
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kill_at is not None:
        from sslpl.run.cli import main as run

        arm_kill(arguments.kill_at)
        sys.argv[1:] = arguments.options
        run()
    start_time = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-chaos-") as name:
        chosen = NAMED_MOMENTS[: max(1, arguments.kills // 2)]
        checks = [lambda: check_kills(Path(name) / "runs", RUN, arguments.kills, arguments.seed, chosen)]
        checks += [lambda: check_random_layers(Path(name), arguments.mask_kills, arguments.seed)]
        checks += [lambda: check_killed_campaign(Path(name), arguments.seed)]
        if not arguments.no_sweeps:
            checks += [lambda: check_killed_sweep(Path(name)), lambda: check_shared_sweep(Path(name))]
        passed = [check() for check in checks]
    print(
        f"chaos: {'nothing was lost' if all(passed) else 'SOMETHING WAS LOST'} ({time.monotonic() - start_time:.0f} s)"
    )
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
