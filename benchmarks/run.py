"""Compares sslpl with a conventional implementation: python benchmarks/run.py [NAME ...] [--quick] [--json FILE].

The latter is a DataLoader over PIL images without workers, float32 training with explicit convolutions in the module,
and scikit-learn's clustering: see conventional.py. Both run alternately in one process, so that other load on the
machine affects both. Peak memory is what a call adds: see `PeakMemory` in measure.py.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
# Waiting threads sleep: beside other processes, spinning ones make both sides up to a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # for both sides, as sslpl does when it is imported before torch

import torch

from benchmarks import hot_paths, imports, measure, whole_runs
from benchmarks.measure import Row, print_table
from benchmarks.setups import SMALL, BenchmarkOptions, Sizes
from sslpl.provenance import provenance
from sslpl.runtime import Runtime, has_bfloat16

Benchmark = Callable[[BenchmarkOptions], Row]
QUICK: dict[str, Benchmark] = {
    "augment_weak": hot_paths.augment_weak,
    "augment_pair": hot_paths.augment_pair,
    "joint_step": hot_paths.joint_step,
    "finetune_step": hot_paths.finetune_step,
    "module_step": hot_paths.module_step,
    "clustering_10000": hot_paths.clustering_10000,
}
ALL: dict[str, Benchmark] = QUICK | {
    "clustering_25000": hot_paths.clustering_25000,
    "pool_scoring": hot_paths.pool_scoring,
    "whole_run": whole_runs.whole_run,
    "scaling": hot_paths.scaling,
}
NAMED: dict[str, Benchmark] = ALL | {"protocol": whole_runs.protocol, "import_select": imports.import_select}
COLUMNS = ("benchmark", "conventional", "ours", "ratio", "conventional +MiB", "ours +MiB", "")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rest = " and ".join(name for name in NAMED if name not in ALL)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMED)}; default: all but {rest}")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}: at full size, under 3 minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, help="timed repetitions (default: that of each benchmark)")
    parser.add_argument("--threads", type=int, help="of torch (default: as torch chooses)")
    parser.add_argument(
        "--processor-time", action="store_true", help="times the processor, for a busy machine and --threads 1"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the rows as one array")
    parser.add_argument("--root", help="folder of Fashion-MNIST (whole_run) or CIFAR-100 (protocol)")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to check that everything runs: times mean nothing"
    )
    parser.add_argument("--pool", type=int, default=50_000, help="images of protocol (default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=6, help="of protocol (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=200, help="of protocol (default: %(default)s)")
    parser.add_argument("--finetune-epochs", type=int, default=30, help="of protocol (default: %(default)s)")
    return parser


def main() -> int:
    """Runs the benchmarks of the command line; returns 1 if a clustering differs from scikit-learn's."""
    arguments = parser().parse_args()
    if unknown := [name for name in arguments.names if name not in NAMED]:
        parser().error(f"unknown: {', '.join(unknown)}; choose from {', '.join(NAMED)}")
    device = Runtime(device=arguments.device).prepare()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.processor_time:
        measure.clock = time.process_time
    schedule = (arguments.pool, arguments.cycles, arguments.epochs, arguments.finetune_epochs)
    bench = BenchmarkOptions(
        device, SMALL if arguments.small else Sizes(), arguments.repeats, arguments.root, *schedule
    )
    machine = machine_line(device)
    print(machine, flush=True)
    rows: list[Row] = []
    for name in arguments.names or (QUICK if arguments.quick else ALL):
        torch.manual_seed(0)
        rows.append(NAMED[name](bench) | {"name": name, "machine": machine})
        print(f"{name}: {cells(rows[-1])[3]}", file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print_rows(rows, machine)
    wrong = [row["name"] for row in rows if row.get("adjusted_rand_index", 1.0) != 1.0]
    if wrong:
        print(f"clusters differ from scikit-learn's: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def machine_line(device: torch.device) -> str:
    """Describes the machine, the software and the commit in one line."""
    facts = provenance(device)
    commit, dirty = facts["git"]["commit"], facts["git"]["dirty"]
    at = f"commit {commit[:7] if commit else 'unknown'}{' with changes' if dirty else ''}"
    dtype = "bfloat16" if has_bfloat16(device) else "float32"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{facts['device_name']} ({dtype}), {cores}, torch {torch.__version__}, {at}"


def cells(row: Row) -> list[str]:
    """Returns the cells of a row of the table."""
    baseline, ratio = row.get("baseline_seconds"), row.get("ratio")
    memory = [row.get(f"{side}_peak_mib") for side in ("baseline", "ours")]
    return [
        row["name"],
        "-" if baseline is None else seconds(baseline),
        seconds(row["ours_seconds"]),
        "-" if ratio is None else f"{ratio:.1f}x",
        *("-" if mib is None else f"{mib:,.0f}" for mib in memory),
        note(row),
    ]


def seconds(value: float) -> str:
    """Formats a time with three significant digits."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def note(row: Row) -> str:
    """Returns the notes on a row, one per line."""
    notes = []
    if "images_per_second" in row:
        notes.append(f"{row['images_per_second']:,.0f} images/s")
    if "ceiling_share" in row:
        notes.append(f"{row['ceiling_share']:.0%} of {row['ceiling_tflops']:.3g} TFLOP/s")
    if "ratio_with_gradient" in row:
        notes.append(f"with gradient to the stages {row['ratio_with_gradient']:.1f}x")
    if "adjusted_rand_index" in row:
        notes.append(f"adjusted Rand index {row['adjusted_rand_index']}")
    if "baseline_accuracy" in row:
        notes.append(f"accuracy {row['baseline_accuracy']:.3f} and {row['ours_accuracy']:.3f}")
    if "processor_seconds" in row:
        notes.append(f"{seconds(row['processor_seconds'])} of the processor")
    if "seconds_exponent" in row:
        notes.append(f"time ~ n^{row['seconds_exponent']:.2f}, memory ~ n^{row['peak_mib_exponent']:.2f}")
    for side in ("baseline", "ours"):
        if phases := row.get(f"{side}_phases"):
            notes.append(f"{side}: " + ", ".join(f"{phase} {took:.1f} s" for phase, took in phases.items()))
    return "\n".join(notes)


def print_rows(rows: list[Row], machine: str) -> None:
    """Prints the table, and the measurements of the benchmark `scaling`."""
    print_table(COLUMNS, map(cells, rows), "medians", machine, width=160)
    for point in (point for row in rows for point in row.get("by_candidates", [])):
        took, peak = seconds(point["seconds"]), point["peak_mib"]
        print(f"{point['candidates']:,} candidates: {took}, {peak:,.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
