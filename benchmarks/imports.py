"""The time that an import takes beyond that of torch, each time in a fresh process."""

import os
import subprocess
import sys
from statistics import median

from benchmarks.measure import Row
from benchmarks.setups import BenchmarkOptions

TIMED = """
import time
import torch
began = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - began[0], time.process_time() - began[1])
"""


def import_select(bench: BenchmarkOptions) -> Row:
    """The import of sslpl.select by a process that has imported torch; ours alone."""
    command = [sys.executable, "-c", TIMED.format(module="sslpl.select")]
    row: Row = {"name": "import_select", "load_average": os.getloadavg()[0]}
    samples = []
    for _ in range(bench.repeats or 5):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        samples.append([float(figure) for figure in done.stdout.split()])
    took, processor = (median(column) for column in zip(*samples, strict=True))
    return row | {"ours_seconds": took, "processor_seconds": processor, "ours_samples": samples}
