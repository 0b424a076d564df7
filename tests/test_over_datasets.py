import csv
from pathlib import Path

import numpy as np
import pytest
from folders import write_run
from scipy import stats

from sslpl.report.comparison import DatasetComparison, compare_datasets
from sslpl.report.csv_files import csv_files
from sslpl.report.over_datasets import aggregates, mean_wins
from sslpl.report.over_datasets_tables import overall_sections
from sslpl.report.read import read_runs
from sslpl.report.render import plain_text
from sslpl.report.text_tables import terminal_tables

# Accuracy of both cycles beyond random sampling's 0.5 + 0.01 seed, by dataset and method; seeds differ by 0.001.
GAINS = {
    "cifar10": {"entropy": 0.1, "sslpm": 0.2, "oracle": 0.4},
    "digits": {"entropy": 0.3, "sslpm": 0.1, "oracle": 0.4},
}


@pytest.fixture
def comparisons(tmp_path: Path) -> list[DatasetComparison]:
    for dataset, methods in GAINS.items():
        for seed in range(4):
            random = 0.5 + 0.01 * seed
            write_run(tmp_path, "random", seed, [random, random], dataset=dataset)
            for method, gain in methods.items():
                values = {"query": {"oracle_baseline": True}} if method == "oracle" else {}
                accuracy = random + gain + 0.001 * seed * (method != "oracle")
                write_run(tmp_path, method, seed, [accuracy, accuracy], dataset=dataset, **values)
    write_run(tmp_path, "only_here", 0, [0.9, 0.9], dataset="digits")
    return compare_datasets(read_runs([tmp_path])[0])


def test_interquartile_means_are_scipys_of_all_runs(comparisons: list[DatasetComparison]) -> None:
    found = {each.method: each for each in aggregates(comparisons)}
    assert set(found) == {"random", "entropy", "sslpm", "oracle"}
    seeds = np.arange(4)
    gain = np.concatenate([0.1 + 0.001 * seeds, 0.3 + 0.001 * seeds])
    area = gain + np.tile(0.5 + 0.01 * seeds, 2)
    entropy = found["entropy"]
    assert entropy.runs == 8
    assert entropy.area.value == pytest.approx(stats.trim_mean(area, 0.25))
    assert entropy.gain.value == pytest.approx(stats.trim_mean(gain, 0.25))
    assert entropy.attainable.value == pytest.approx(stats.trim_mean(gain / 0.4, 0.25))
    assert entropy.attainable.low < entropy.attainable.value < entropy.attainable.high
    assert found["random"].attainable == pytest.approx((0, 0, 0))
    assert found["oracle"].attainable == pytest.approx((1, 1, 1))


def test_a_dataset_without_baselines_leaves_the_gains_out(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6], dataset="cifar10")
        for dataset in ("cifar10", "digits"):
            write_run(tmp_path, "entropy", seed, [0.5, 0.7], dataset=dataset)
    comparisons = compare_datasets(read_runs([tmp_path])[0])
    (entropy,) = aggregates(comparisons)
    assert entropy.gain is None
    assert entropy.attainable is None
    assert list(overall_sections(comparisons)[0].tables[0].header) == ["", "runs", "AUBC"]


def test_wins_are_averaged_over_datasets(comparisons: list[DatasetComparison]) -> None:
    methods, wins = mean_wins(comparisons)
    entropy, sslpm, random = (methods.index(name) for name in ("entropy", "sslpm", "random"))
    assert wins[entropy, sslpm] == 0.5  # one dataset each
    assert wins[entropy, random] == 1
    assert wins[random, entropy] == 0


def test_page_terminal_and_csv_hold_the_aggregate(comparisons: list[DatasetComparison]) -> None:
    sections = {section.heading: section.tables for section in overall_sections(comparisons)}
    assert list(sections) == ["Aggregate over datasets", "Ranks over datasets", "Wins over datasets"]
    wins, penalties = sections["Wins over datasets"]
    assert plain_text(wins.rows[0][0]) == "oracle"
    assert [plain_text(row[0]) for row in penalties.rows] == [plain_text(row[0]) for row in wins.rows]
    titles = [table.title for table in terminal_tables(comparisons)]
    assert titles[:4] == ["", "Aggregate over datasets", "Ranks over datasets", "Wins over datasets"]
    rows = list(csv.DictReader(csv_files(comparisons)["aggregate.csv"].splitlines()))
    assert len(rows) == 4 * 3
    (row,) = [row for row in rows if (row["method"], row["measure"]) == ("sslpm", "attainable_share")]
    found = next(each for each in aggregates(comparisons) if each.method == "sslpm")
    assert [float(row[key]) for key in ("iqm", "low", "high")] == pytest.approx(found.attainable)
    assert "aggregate.csv" not in csv_files(comparisons[:1])
