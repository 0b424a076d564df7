"""Kills real runs and sweeps and compares what they leave with undisturbed ones: python tests/chaos.py --kills 20.

`--mask-kills 20` kills as many runs of each network with random layers: dropout, drop path.

Each run is killed with signal 9 (at a random moment, or at a chosen one by its own hand), started again with the same
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
MASKS = {  # networks with random layers
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
MEASURED = ("_seconds", "_per_second", "_mib")  # columns of metrics.csv that no two runs share
DEADLINE = 600  # seconds that one life may take


def die() -> None:
    """As abruptly as by a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(module: Any, name: str, call: int) -> None:
    """Has a function of a module kill the process at one of its calls (from 1)."""
    function, calls = getattr(module, name), Counter[str]()

    def deadly(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        if calls[name] == call:
            die()
        return function(*arguments, **options)

    setattr(module, name, deadly)


def dies_while_writing(file: str, call: int) -> None:
    """Kills the process when half of a file has been written."""
    from sslpl.recording import checkpoint, recorder

    calls = Counter[str]()
    for module in (checkpoint, recorder):
        whole = module.write_whole

        def half(path: Path, content: str | bytes, whole: Callable[..., None] = whole) -> None:
            calls[path.name] += 1
            if path.name == file and calls[file] == call:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
                data = content.encode() if isinstance(content, str) else content
                partial.write_bytes(data[: len(data) // 2])
                die()
            whole(path, content)

        module.write_whole = half  # type: ignore[assignment]


def doom(name: str) -> None:
    """Arms one of the chosen moments in this process."""
    from sslpl.phases import finetune, label
    from sslpl.recording import checkpoint, recorder
    from sslpl.run import execute

    chosen: dict[str, Callable[[], None]] = {
        "between query and label": lambda: dies_before(label, "ask_oracle", 2),
        "while writing a checkpoint": lambda: dies_while_writing(checkpoint.CURRENT, 4),
        "while writing metrics.csv": lambda: dies_while_writing("metrics.csv", 2),
        "while writing status.json": lambda: dies_while_writing("status.json", 7),
        "during the fine-tune": lambda: dies_before(finetune, "finetune_step", 17),
        "between a checkpoint and its tables": lambda: dies_before(recorder.run_tables, "metrics_csv", 3),
        "before the last weights": lambda: dies_before(checkpoint, "keep_weights", 1),
        "between the last weights and the status": lambda: dies_before(checkpoint, "discard", 1),
        "before the first epoch": lambda: dies_before(execute, "run_active_learning", 1),
    }
    chosen[name]()


CHOSEN = (
    *("between query and label", "while writing a checkpoint", "while writing metrics.csv"),
    *("while writing status.json", "during the fine-tune", "between a checkpoint and its tables"),
    *("before the last weights", "between the last weights and the status", "before the first epoch"),
)


class Life(NamedTuple):
    """How one process of a run ended."""

    code: int
    log: str


def start(folder: Path, options: list[str], doomed: str | None = None) -> subprocess.Popen[str]:
    """A process of its own in a folder."""
    folder.mkdir(exist_ok=True)
    head = [str(ROOT / "run.py")] if doomed is None else [__file__, "--doomed", doomed, "--"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *head, *options], cwd=folder, env=environment, **pipes)


def live(folder: Path, options: list[str], kill_after: float | None = None, doomed: str | None = None) -> Life:
    """Runs a process to its end, or kills it after some seconds."""
    process = start(folder, options, doomed)
    try:
        log, _ = process.communicate(timeout=DEADLINE if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        log, _ = process.communicate()
        if kill_after is None:
            sys.exit(f"chaos: no end within {DEADLINE} s\n{log}")
    return Life(process.returncode, log)


def await_checkpoint(folder: Path, process: subprocess.Popen[str]) -> float:
    """Waits for the first checkpoint of a run, or for its end; the time then."""
    while process.poll() is None and not any(folder.glob("outputs/**/checkpoint/*.ckpt")):
        time.sleep(0.02)
    return time.monotonic()


def timed(folder: Path, options: list[str]) -> tuple[Life, float]:
    """Runs a process to its end; and how long that took from its first checkpoint."""
    process = start(folder, options)
    since = await_checkpoint(folder, process)
    log, _ = process.communicate(timeout=DEADLINE)
    return Life(process.returncode, log), time.monotonic() - since


def live_until(folder: Path, options: list[str], seconds: float) -> Life:
    """Kills a process some seconds after its first checkpoint, unless it has ended by then."""
    process = start(folder, options)
    await_checkpoint(folder, process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    process.kill()
    log, _ = process.communicate()
    return Life(process.returncode, log)


def result(folder: Path) -> dict[str, object]:
    """All that two equal runs must share: the metrics that are not measured times, the ledger, weights, files."""
    import torch

    (run,) = (path.parent for path in folder.glob("outputs/**/status.json"))
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.endswith(MEASURED)} for row in csv.DictReader(file)]
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
    """Kills a run once, lets the same command finish it, compares; and what the second life said of it."""
    while True:
        if isinstance(moment, str):
            doomed = live(folder, options, doomed=moment)
        else:
            doomed = live_until(folder, options, moment)
        if doomed.code == -signal.SIGKILL:
            break
        if isinstance(moment, str) or doomed.code != 0:
            return False, f"was not killed but ended with {doomed.code}: {doomed.log[-2000:]}"
        moment /= 2  # it was done before
        folder = folder.with_name(f"{folder.name}-again")
    second = live(folder, options)
    if second.code != 0:
        return False, f"the second life ended with {second.code}: {second.log[-2000:]}"
    left = result(folder)
    differing = [what for what, value in expected.items() if left[what] != value]
    resumed = re.search(r"^(resumed at .*|finished already)", second.log, re.MULTILINE)
    said = resumed.group(1) if resumed else "began anew"
    return not differing, said if not differing else f"{said}; differs: {', '.join(differing)}"


def kills(scratch: Path, options: list[str], count: int, seed: int, chosen: tuple[str, ...] = ()) -> bool:
    """Whether every one of `count` killed runs ended as an undisturbed one: some at chosen moments, the rest at random
    ones after the first checkpoint."""
    scratch.mkdir()
    whole, took = timed(scratch / "whole", options)
    if whole.code != 0:
        sys.exit(f"chaos: the undisturbed run ended with {whole.code}\n{whole.log}")
    expected, generator = result(scratch / "whole"), random.Random(seed)
    moments = [*chosen, *(generator.random() * took for _ in range(count - len(chosen)))]

    def one(number: int) -> bool:
        same, said = killed_and_resumed(scratch / f"killed{number}", options, moments[number], expected)
        moment = moments[number]
        when = moment if isinstance(moment, str) else f"{moment:.1f} s after the first checkpoint"
        print(f"{'identical' if same else 'DIFFERENT'}  killed {when}: {said}", flush=True)
        return same

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as workers:
        same = sum(workers.map(one, range(count)))
    print(f"{same} of {count} identical to the uninterrupted run", flush=True)
    return same == count


def masked_kills(scratch: Path, count: int, seed: int) -> bool:
    """Whether killed runs of networks with random layers end as undisturbed ones."""
    good = []
    for name, options in MASKS.items() if count else ():
        print(f"{name}:", flush=True)
        good.append(kills(scratch / name.replace(" ", "_"), options, count, seed))
    return all(good)


def trained(folder: Path) -> dict[str, int]:
    """When each finished run of a sweep left its weights; one killed between these and its status writes them again."""
    finished = [path.parent for path in folder.glob("outputs/**/status.json") if '"finished"' in path.read_text()]
    return {run.name: (run / "checkpoint" / "weights.pt").stat().st_mtime_ns for run in finished}


def tally(log: str) -> Counter[str]:
    """The line below the table of a sweep: how many runs ended how. Other processes' lines may come after it."""
    counts = [line for line in log.splitlines() if re.fullmatch(r"\d+ \w+(, \d+ \w+)*", line)]
    return Counter({state: int(number) for number, state in re.findall(r"(\d+) (\w+)", counts[-1] if counts else "")})


def killed_sweep(scratch: Path) -> bool:
    """Whether a sweep that was killed three times ends complete, with no finished run trained again."""
    folder, before = scratch / "sweep", dict[str, int]()
    for finished in (2, 5, 9):
        process, since = start(folder, SWEEP), time.monotonic()
        while len(trained(folder)) < finished and time.monotonic() - since < DEADLINE:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        now = trained(folder)
        if not finished <= len(now) < JOBS or any(now[run] != at for run, at in before.items()):
            print(f"DIFFERENT  sweep: {len(now)} runs finished where {finished} were awaited, or one was trained again")
            return False
        before = now
    last = live(folder, SWEEP)
    now, ends = trained(folder), tally(last.log)
    once = all(now[run] == at for run, at in before.items()) and ends["skipped"] == len(before)
    good = last.code == 0 and len(now) == JOBS and once
    print(f"{'complete' if good else 'INCOMPLETE'}  sweep of {JOBS} runs killed 3 times: at last {dict(ends)}")
    since = time.monotonic()
    again = live(folder, SWEEP)
    spent = time.monotonic() - since
    print(f"the finished sweep once more: {spent:.1f} s with the start of the process, {dict(tally(again.log))}")
    return good and again.code == 0 and tally(again.log) == {"skipped": JOBS}


def shared_sweep(scratch: Path) -> bool:
    """Whether two processes that are given the same sweep finish it together, no run done twice."""
    folder = scratch / "shared"
    with ThreadPoolExecutor(max_workers=2) as workers:
        lives = list(workers.map(lambda _: live(folder, SWEEP), range(2)))
    ends = [tally(each.log) for each in lives]
    good = all(each.code == 0 for each in lives) and sum(end["finished"] for end in ends) == JOBS
    good = good and len(trained(folder)) == JOBS and all(end.total() == JOBS for end in ends)
    print(f"{'shared' if good else 'NOT SHARED'}  sweep of {JOBS} runs in two processes: {[dict(end) for end in ends]}")
    if not good:
        print(*(each.log[-3000:] for each in lives), sep="\n---\n")
    return good


def answer(batch: Path) -> None:
    """Labels a batch of digits as they are."""
    from sslpl.data.datasets import digits

    with (batch / "to_label.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    truth = digits().train_labels
    rows = [f"{path},{int(truth[int(path.removesuffix('.png'))])}" for path in paths]
    (batch / "labels.csv").write_text("\n".join(["path,label", *rows]))


def killed_campaign(scratch: Path, seed: int) -> bool:
    """Whether a run that waits for labels four times, killed in each of its lives, ends like one that was told them."""
    folder, generator, since = scratch / "campaign", random.Random(seed), time.monotonic()
    told = live(scratch / "told", RUN)
    took, hidden = (time.monotonic() - since) / 4, ("loss_rank_correlation", "pseudo_label_accuracy")
    if told.code != 0:
        sys.exit(f"chaos: the undisturbed run ended with {told.code}\n{told.log}")
    for cycle in range(5):
        live(folder, [*RUN, "oracle=file"], kill_after=generator.uniform(0.3, 1.0) * took)
        life = live(folder, [*RUN, "oracle=file"])
        if life.code != 0:
            print(f"DIFFERENT  campaign: ended with {life.code}: {life.log[-2000:]}")
            return False
        for batch in folder.glob(f"outputs/**/labeling/cycle{cycle}"):
            answer(batch)
    ends = [result(part) for part in (scratch / "told", folder)]
    for end in ends:
        end["metrics.csv"] = [{k: v for k, v in row.items() if k not in hidden} for row in end["metrics.csv"]]  # type: ignore[attr-defined]
    differing = [what for what in ("metrics.csv", "queries.csv", "weights") if ends[0][what] != ends[1][what]]
    print(
        f"{'identical' if not differing else 'DIFFERENT'}  campaign killed 5 times {', '.join(differing)}", flush=True
    )
    return not differing


def main() -> None:
    """Exit code 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill, half of them at chosen moments")
    parser.add_argument("--mask-kills", type=int, default=3, help="runs to kill of each network with random layers")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--no-sweeps", action="store_true", help="single runs alone")
    parser.add_argument("--doomed", help=argparse.SUPPRESS)  # the moment at which this process is to kill itself
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.doomed is not None:
        from sslpl.run.cli import main as run

        doom(arguments.doomed)
        sys.argv[1:] = arguments.options
        run()
    since = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-chaos-") as name:
        chosen = CHOSEN[: max(1, arguments.kills // 2)]
        checks = [lambda: kills(Path(name) / "runs", RUN, arguments.kills, arguments.seed, chosen)]
        checks += [lambda: masked_kills(Path(name), arguments.mask_kills, arguments.seed)]
        checks += [lambda: killed_campaign(Path(name), arguments.seed)]
        checks += [] if arguments.no_sweeps else [lambda: killed_sweep(Path(name)), lambda: shared_sweep(Path(name))]
        good = [check() for check in checks]
    print(f"chaos: {'nothing was lost' if all(good) else 'SOMETHING WAS LOST'} ({time.monotonic() - since:.0f} s)")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
