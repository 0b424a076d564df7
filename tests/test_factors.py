import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from folders import write_run

from sslpl.report import __main__ as main
from sslpl.report.comparison import compare_datasets
from sslpl.report.factorial import Factorial, contrast, effects, full_factorial, two_way_means
from sslpl.report.factorial_tables import crossed_tables
from sslpl.report.read import read_runs

# Two by two with two seeds, by hand: rows none and fixmatch, columns random and entropy.
BY_HAND = np.array([[[1.0, 2.0], [4.0, 9.0]], [[2.0, 3.0], [5.0, 8.0]]])


def crossing(root: Path, **skipped: str) -> Factorial | None:
    """Returns the factorial of 2 queries, 3 task methods, 2 module methods and 3 seeds, without the skipped runs."""
    for seed, query, task, ssl in product(range(3), ("entropy", "random"), ("none", "fixmatch", "uda"), ("a", "none")):
        if (query, task, ssl) == tuple(skipped.values()):
            continue
        top = 0.6 + 0.01 * seed + 0.02 * (query == "entropy") + 0.1 * (task == "fixmatch") + 0.04 * (ssl == "a")
        top += 0.03 * (query == "entropy" and task == "fixmatch")
        choices = {"method": "sslpm", "query": query, "task_ssl": task, "ssl": ssl, "tracker": "none"}
        choices |= {"query/scorer": query, "query/selector": "top"} if query == "entropy" else {}  # what it is made of
        write_run(root, f"sslpm+query={query}+ssl={ssl}+task_ssl={task}", seed, [0.5, top], choices=choices)
    (comparison,) = compare_datasets(read_runs([root])[0])
    return full_factorial(comparison)


def test_a_main_effect_by_hand():
    assert contrast(BY_HAND, {0: 1}).tolist() == [5.0, 4.0]  # (4 + 9) / 2 - (1 + 2) / 2, and so on
    assert contrast(BY_HAND, {1: 1}).tolist() == [3.0, 2.0]


def test_an_interaction_by_hand():
    assert contrast(BY_HAND, {0: 1, 1: 1}).tolist() == [4.0, 2.0]  # (9 - 4) - (2 - 1), (8 - 5) - (3 - 2)


def test_crossed_groups_are_found_with_their_references_first(tmp_path):
    found = crossing(tmp_path)
    assert dict(zip(found.groups, found.options, strict=True)) == {
        "query": ("random", "entropy"),
        "task_ssl": ("none", "fixmatch", "uda"),
        "ssl": ("none", "a"),
    }
    assert found.seeds == [0, 1, 2]


def test_effects_are_those_that_were_put_in(tmp_path):
    found = crossing(tmp_path)
    by_options = {tuple(f"{g}={o}" for g, o, _ in e.options): e.result.difference for e in effects(found, metric=1)}
    assert by_options["ssl=a",] == pytest.approx(0.04)
    assert by_options["query=entropy",] == pytest.approx(0.02 + 0.03 / 3)
    assert by_options["task_ssl=fixmatch",] == pytest.approx(0.1 + 0.03 / 2)
    assert by_options["query=entropy", "task_ssl=fixmatch"] == pytest.approx(0.03)
    assert by_options["query=entropy", "task_ssl=uda"] == pytest.approx(0)
    assert by_options["query=entropy", "task_ssl=fixmatch", "ssl=a"] == pytest.approx(0)
    assert len(by_options) == 4 + 5 + 2  # one for each option beside the reference, and their products


def test_the_two_way_table_averages_over_the_rest(tmp_path):
    found = crossing(tmp_path)
    query, task = found.groups.index("query"), found.groups.index("task_ssl")
    cell = two_way_means(found, query, task, metric=1)[1][1]  # entropy with fixmatch
    assert cell.mean == pytest.approx(0.6 + 0.01 + 0.02 + 0.1 + 0.02 + 0.03)
    assert cell.std == pytest.approx(0.01)
    assert cell.n == 3


def test_a_missing_combination_is_no_factorial(tmp_path):
    assert crossing(tmp_path, query="entropy", task="uda", ssl="a") is None


def test_methods_are_one_factor_and_not_what_they_are_made_of(tmp_path):
    for seed, method, budget in product(range(2), ("sslpm", "entropy"), ("low", "high")):
        ssl = "soft" if method == "sslpm" else "none"
        choices = {"method": method, "ssl": ssl, "query": method, "budget": budget, "training": "published"}
        per_cycle = {"per_cycle": 20 if budget == "low" else 40}
        write_run(tmp_path, method, seed, [0.5, 0.6 + 0.01 * seed], choices=choices, budget=per_cycle)
    (comparison,) = compare_datasets(read_runs([tmp_path])[0])
    assert set(full_factorial(comparison).groups) == {"method", "budget"}


def test_one_group_is_no_factorial(tmp_path):
    for seed, ssl in product(range(2), ("none", "a")):
        write_run(tmp_path, f"sslpm+ssl={ssl}", seed, [0.5, 0.6], choices={"method": "sslpm", "ssl": ssl})
    (comparison,) = compare_datasets(read_runs([tmp_path])[0])
    assert full_factorial(comparison) is None
    assert crossed_tables(comparison) == []


def test_page_and_csv_hold_the_effects(tmp_path, monkeypatch):
    crossing(tmp_path / "runs")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    main.main()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Crossed options" in page
    assert (tmp_path / "out" / "effects-digits.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "effects.csv").open() as file:
        rows = {(row["metric"], row["effect"]): row for row in csv.DictReader(file)}
    row = rows["final accuracy", "query=entropy x task_ssl=fixmatch"]
    assert float(row["difference"]) == pytest.approx(0.03)
    assert row["reference"] == "query=random x task_ssl=none"
    assert int(row["n"]) == 3


def test_markdown_holds_the_effects(tmp_path, monkeypatch, capsys):
    crossing(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--markdown"])
    main.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| query=entropy") and "=fixmatch (against none) | 3.00" in line for line in lines)
    at = lines.index("**query by task_ssl: final accuracy**")
    assert lines[at + 2] == "|  | none | fixmatch | uda |"
    assert lines[at + 4].startswith("| random | ")
