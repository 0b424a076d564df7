"""The time that an import takes, in a fresh process."""

import subprocess
import sys

from benchmarks.measure import Case, Row, measured
from benchmarks.parts import Bench


def import_select(bench: Bench) -> Row:
    """Starts a process that imports torch and sslpl.select; the baseline imports torch alone."""
    case = Case(importing("torch", "sslpl.select"), importing("torch"), repeats=5, extra=beyond_the_baseline)
    return measured("import_select", case, bench.device, bench.repeats)


def importing(*modules: str):
    """A function that imports modules in a process of its own."""
    command = [sys.executable, "-c", f"import {', '.join(modules)}"]
    return lambda: subprocess.run(command, check=True)


def beyond_the_baseline(row: Row, _ours: object, _baseline: object) -> Row:
    """What ours takes in addition."""
    return {"seconds_beyond_torch": row["ours_seconds"] - row["baseline_seconds"]}
