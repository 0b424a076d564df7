import csv
import math
from pathlib import Path

import numpy as np
import pytest
from folders import write_run

from sslpl.report.baselines import attainable_share, gains, oracle_baseline, random_baseline
from sslpl.report.comparison import Arm, DatasetComparison, compare_datasets
from sslpl.report.csv_files import csv_files
from sslpl.report.pairwise import win_matrix
from sslpl.report.pairwise_tables import tests_table as table_of_tests
from sslpl.report.read import read_runs
from sslpl.report.render import plain_text, render_markdown
from sslpl.report.results import results_table
from sslpl.report.savings import label_savings, speed_up_factor
from sslpl.report.text_tables import markdown_tables, terminal_tables

ORACLE = {"query": {"oracle_baseline": True}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds: random sampling, an oracle baseline two points above it, a method with half of that gain."""
    for seed in range(3):
        base = np.array([0.5, 0.6, 0.7, 0.8]) + 0.01 * seed
        write_run(tmp_path, "random", seed, base.tolist())
        write_run(tmp_path, "entropy", seed, (base + 0.01).tolist())
        write_run(tmp_path, "class_balanced_random", seed, (base + 0.02).tolist(), **ORACLE)
    return tmp_path


def only(root: Path) -> DatasetComparison:
    (comparison,) = compare_datasets(read_runs([root])[0])
    return comparison


def arm(comparison: DatasetComparison, method: str) -> Arm:
    return next(arm for arm in comparison.arms if arm.method_name == method)


def test_half_of_the_attainable_gain(runs: Path) -> None:
    comparison = only(runs)
    shares = {each.method_name: attainable_share(comparison, each) for each in comparison.arms}
    assert shares["entropy"] == pytest.approx((0.5, 0.5, 0.5))
    assert shares["random"] == pytest.approx((0, 0, 0))
    assert shares["class_balanced_random"] == pytest.approx((1, 1, 1))
    assert gains(comparison, arm(comparison, "entropy")) == pytest.approx([0.01] * 3)


def test_the_best_oracle_of_the_same_protocol_is_the_reference(runs: Path) -> None:
    for seed in range(3):
        write_run(runs, "boss", seed, [0.6, 0.7, 0.8, 0.9], **ORACLE)
        write_run(runs, "longer", seed, [0.9, 0.9, 0.9, 0.9], training={"epochs": 9}, **ORACLE)
    comparison = only(runs)
    assert oracle_baseline(comparison, arm(comparison, "entropy")).method_name == "boss"
    assert random_baseline(comparison, arm(comparison, "longer")) is None
    assert attainable_share(comparison, arm(comparison, "longer")) is None
    assert attainable_share(comparison, arm(comparison, "entropy")).value == pytest.approx(0.01 / 0.09)


def test_an_oracle_is_not_the_best_method(runs: Path) -> None:
    comparison = only(runs)
    assert comparison.arms[0].method_name == "class_balanced_random"
    assert comparison.best.method_name == "entropy"


def test_without_an_oracle_there_is_no_column_and_no_number(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6])
    comparison = only(tmp_path)
    assert attainable_share(comparison, comparison.arms[0]) is None
    assert "attainable gain" not in results_table([comparison]).header
    assert "speed-up factor" in results_table([comparison]).header
    (row,) = csv.DictReader(csv_files([comparison])["summary.csv"].splitlines())
    assert row["attainable_share"] == ""


def test_an_oracle_below_random_sampling_leaves_the_share_undefined(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6])
        write_run(tmp_path, "class_balanced_random", seed, [0.4, 0.5], **ORACLE)
    comparison = only(tmp_path)
    assert math.isnan(attainable_share(comparison, arm(comparison, "random")).value)
    assert "attainable gain" not in results_table([comparison]).header


def test_the_speed_up_factor_is_the_median_share_of_labels(tmp_path: Path) -> None:
    """Random sampling reaches 0.6, 0.7 and 0.8 with 40, 60 and 80 labels; entropy with 30, 40 and 70."""
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6, 0.7, 0.8])
        write_run(tmp_path, "entropy", seed, [0.5, 0.7, 0.76, 0.84])
        write_run(tmp_path, "slow", seed, [0.5, 0.55, 0.6, 0.65])
    comparison = only(tmp_path)
    savings = label_savings(comparison, arm(comparison, "entropy"))
    assert [saving.share for saving in savings] == pytest.approx([30 / 40, 40 / 60, 70 / 80])
    assert speed_up_factor(savings) == pytest.approx(0.75)
    slow = label_savings(comparison, arm(comparison, "slow"))
    assert [saving.share for saving in slow] == pytest.approx([60 / 40, math.nan, math.nan], nan_ok=True)
    assert math.isnan(speed_up_factor(slow))
    assert math.isnan(speed_up_factor([]))
    columns = results_table([comparison])
    factors = {plain_text(row[1]): plain_text(row[-1]) for row in columns.rows}
    assert columns.header[-1] == "speed-up factor"
    assert factors == {"entropy": "0.75", "random": "1.00", "slow": "not reached"}


def test_wins_count_seeds_and_cycles_and_ties_half(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6, 0.7, 0.8])
        write_run(tmp_path, "entropy", seed, [0.5, 0.7, 0.7 + 0.01 * seed, 0.9])
    comparison = only(tmp_path)
    assert [each.name for each in comparison.arms] == ["entropy", "random"]
    wins = win_matrix(comparison)
    assert wins[0, 1] == (5 + 3 / 2) / 8  # of eight pairs five wins and three ties
    assert wins[1, 0] == 1 - wins[0, 1]
    rows = list(csv.DictReader(csv_files([comparison])["wins.csv"].splitlines()))
    assert [(row["first"], row["second"], float(row["wins"])) for row in rows] == [
        ("entropy", "random", wins[0, 1]),
        ("random", "entropy", wins[1, 0]),
    ]


def test_many_pairs_are_cut_to_the_best_and_random(tmp_path: Path) -> None:
    for method in range(12):
        for seed in range(2):
            write_run(tmp_path, f"method_{method}", seed, [0.5, 0.6 + 0.01 * method + 0.001 * seed * (method % 3)])
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.55])
        write_run(tmp_path, "class_balanced_random", seed, [0.5, 0.9], **ORACLE)
    comparison = only(tmp_path)
    table = table_of_tests(comparison)
    pairs = [plain_text(row[0]).split(" \N{MINUS SIGN} ") for row in table.rows]
    assert len(pairs) == 13 + 12  # each with the other thirteen, their own pair once
    assert all({"random", "method_11"} & set(pair) for pair in pairs)
    assert "Of 91 pairs" in table.caption
    assert len(csv_files([comparison])["tests.csv"].splitlines()) == 1 + 91
    wins = next(table for table in terminal_tables([comparison]) if table.title == "digits: win matrix")
    assert len(wins.header) == 2  # too wide for a terminal: the mean alone
    assert len(wins.rows) == 14
    (whole,) = [table for table in markdown_tables([comparison]) if table.title == "digits: win matrix"]
    assert list(map(plain_text, whole.header)) == ["", "mean", *map(str, range(1, 15))]
    assert [plain_text(row[0]) for row in whole.rows[:2]] == ["1. class_balanced_random", "2. method_11"]


def test_markdown_holds_seeds_wins_and_gains(runs: Path) -> None:
    text = "\n\n".join(map(render_markdown, markdown_tables([only(runs)])))
    for part in (
        "| digits | entropy | 3 | 67.00 ± 1.00 | 82.00 ± 1.00 | 50 | ",
        "**digits: paired tests**",
        "| seeds needed |",
        "**digits: win matrix**",
        "| entropy | 50 | 0 | \N{EN DASH} | 100 |",
        "**digits: penalty matrix**",
        "**digits: label savings**",
    ):
        assert part in text
