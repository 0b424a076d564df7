"""Compares runs: python -m sslpl.report FOLDER... [--output DIR] [--markdown]."""

import argparse
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from sslpl.files import write_whole
from sslpl.identity import Config, scientific
from sslpl.progress import duration
from sslpl.views import aubc

Spread = tuple[float, float]  # mean and standard deviation


class Run(NamedTuple):
    """A finished run as its folder tells it."""

    dataset: str
    label: str
    setting: str  # 8 digits over the config without the seed: runs that differ in it are not comparable
    seed: int
    rows: list[dict[str, float | None]]  # metrics.csv


class Summary(NamedTuple):
    """One line of the comparison: the runs of one setting over its seeds."""

    dataset: str
    label: str
    setting: str
    n: int
    aubc: Spread
    final_accuracy: Spread
    loss_rank_correlation: Spread | None  # mean over the cycles of each run
    seconds: float  # mean of a run


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], int]:
    """The finished runs below some folders, and how many others there are."""
    runs, unfinished = [], 0
    for status in sorted(path for folder in folders for path in folder.glob("**/status.json")):
        if json.loads(status.read_text()).get("state") == "finished":
            runs.append(read_run(status.parent))
        else:
            unfinished += 1
    return runs, unfinished


def read_run(folder: Path) -> Run:
    """One run from its folder."""
    config: Config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))  # type: ignore[assignment]
    science = {key: value for key, value in scientific(config).items() if key != "seed"}
    setting = hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:8]
    with (folder / "metrics.csv").open() as file:
        rows = [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]
    return Run(folder.parts[-3], folder.parts[-2], setting, int(config["seed"]), rows)


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """A summary for each dataset, label and setting, the best area under the budget curve of a dataset first."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.label, run.setting), []).append(run)
    return sorted((measured(*key, group) for key, group in groups.items()), key=lambda s: (s.dataset, -s.aubc[0]))


def measured(dataset: str, label: str, setting: str, runs: Sequence[Run]) -> Summary:
    """The summary of runs that differ by their seed alone."""
    correlations = [
        mean(values)
        for run in runs
        if (values := [v for row in run.rows if (v := row["loss_rank_correlation"]) is not None])
    ]
    seconds = [sum(v or 0.0 for row in run.rows for key, v in row.items() if key.endswith("_seconds")) for run in runs]
    return Summary(
        dataset,
        label,
        setting,
        n=len(runs),
        aubc=spread([aubc(run.rows) for run in runs]),
        final_accuracy=spread([run.rows[-1]["test_accuracy"] or 0.0 for run in runs]),
        loss_rank_correlation=spread(correlations) if correlations else None,
        seconds=mean(seconds),
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1; 0 for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


HEADER = ("dataset", "label", "n", "area under the budget curve", "final accuracy", "loss rank correlation", "time")


def cells(summary: Summary) -> tuple[str, ...]:
    """A summary as the texts of a table's row."""
    correlation = summary.loss_rank_correlation
    return (
        summary.dataset,
        summary.label,
        str(summary.n),
        *(f"{100 * m:.2f} ± {100 * s:.2f}" for m, s in (summary.aubc, summary.final_accuracy)),
        f"{correlation[0]:.3f} ± {correlation[1]:.3f}" if correlation else "",
        duration(summary.seconds),
    )


def summary_csv(summaries: Sequence[Summary]) -> str:
    """The comparison as CSV, accuracies from 0 to 1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    pairs = ("aubc", "final_accuracy", "loss_rank_correlation")
    writer.writerow(
        ["dataset", "label", "setting", "n", *(f"{p}_{m}" for p in pairs for m in ("mean", "std")), "seconds"]
    )
    for s in summaries:
        values = [value for pair in (s.aubc, s.final_accuracy, s.loss_rank_correlation or ("", "")) for value in pair]
        writer.writerow([s.dataset, s.label, s.setting, s.n, *values, s.seconds])
    return buffer.getvalue()


def markdown(summaries: Sequence[Summary]) -> str:
    """The comparison as a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(s) for s in summaries)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Prints the comparison; with --output also writes summary.csv."""
    parser = argparse.ArgumentParser(prog="python -m sslpl.report", description="Compares finished runs.")
    parser.add_argument("folder", nargs="+", type=Path, help="folders of runs, searched with all below them")
    parser.add_argument("--output", type=Path, help="folder for summary.csv")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    runs, unfinished = read_runs(options.folder)
    if not runs:
        sys.exit(f"sslpl: no finished run below {', '.join(map(str, options.folder))} ({unfinished} unfinished)")
    summaries = summarize(runs)
    if options.markdown:
        print(markdown(summaries))
    else:
        table = Table(*HEADER, box=None)
        for summary in summaries:
            table.add_row(*cells(summary))
        Console().print(table)
    if unfinished:
        print(f"{unfinished} runs are not finished and left out", file=sys.stderr)
    if options.output:
        write_whole(options.output / "summary.csv", summary_csv(summaries))


if __name__ == "__main__":
    main()
