"""Spreadsheets read no cell of a CSV as a formula, and sslpl reads the original text."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result, run_folder
from folders import write_run
from test_oracle import answer, read, truth

from sslpl.csv_text import csv_text, escape_formula, unescape_formula
from sslpl.data.datasets import digits
from sslpl.oracle.label_table import read_table
from sslpl.predict.predictions import FilePredictions, predictions_csv
from sslpl.recording.run_tables import classes_csv
from sslpl.report.comparison import compare_datasets
from sslpl.report.csv_files import csv_files
from sslpl.report.read import read_runs
from sslpl.types import Dataset

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\tx", "\rx", "'=1", "''-x", "=", "-1+2")
HARMLESS = ("", "a=b", "cat", "-1", "-0.5", "+3", "-1e-05", "'quoted'", "'", "1-2", "x@y")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_escaped_and_comes_back(text: str) -> None:
    assert escape_formula(text) == f"'{text}"
    assert unescape_formula(escape_formula(text)) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert escape_formula(text) == text
    assert unescape_formula(text) == text


def test_numbers_are_written_as_numbers() -> None:
    assert csv_text(("a", "b"), [(-1, -0.5), (None, math.nan)]) == "a,b\n-1,-0.5\n,\n"


def cells(text: str) -> set[str]:
    return {cell for row in csv.reader(text.splitlines()) for cell in row}


def test_no_table_has_a_class_a_path_or_a_label_that_a_spreadsheet_runs(tmp_path: Path) -> None:
    assert cells(classes_csv(["=A1"])) >= {"'=A1", "0"}
    predicted = FilePredictions(
        [Path("x")], *(np.zeros((1, 2), "float32") for _ in range(2)), np.array([-1.5]), np.zeros((1, 2))
    )
    assert cells(predictions_csv(predicted, ("=A1", "b"), ["-x.png"])) >= {"'=A1", "'-x.png", "-1.5", "p_=A1"}
    write_run(tmp_path, "@random", 0, [0.5, 0.6])
    files = csv_files(compare_datasets(read_runs([tmp_path])[0]))
    for name in ("summary.csv", "curves.csv", "runs.csv"):
        assert "'@random" in cells(files[name])
        assert "@random" not in cells(files[name])


def named_like_formulas(root: str = "data", flip: bool = False, cutout: int | None = None) -> Dataset:
    """Returns unlabeled digits whose files and classes are named like formulas."""
    from test_oracle import photos

    data = photos(root)
    paths = tuple(f"=unlabeled/scan {position:03d}.png" for position in range(len(data.train)))
    names = tuple(f"-{name}" for name in data.class_names)
    return data._replace(paths=paths, class_names=names)


def test_what_is_asked_and_answered_in_tables_comes_back(sslpl: Callable[..., Result]) -> None:
    run = (*TINY, "budget.initial=24", "budget.per_cycle=8", "budget.candidates=40", "training.epochs=1",
           "dataset._target_=test_csv_text.named_like_formulas", "oracle=file", "runtime.progress=none")  # fmt: skip
    Path("data").mkdir()
    Path("data/known.json").write_text(json.dumps(list(range(24))))
    assert sslpl(*run).code == 0
    (folder,) = (run_folder() / "labeling").glob("cycle*")
    rows = read(folder / "to_label.csv")
    assert all(row["path"].startswith("'=unlabeled/") and row["predicted"].startswith("'-") for row in rows)
    answer(folder, labels=lambda path: f"'-{truth(path)}")  # as copied from the column `predicted`
    assert [row.path for row in read_table(folder / "labels.csv")] == [row["path"][1:] for row in rows]
    assert sslpl(*run).code == 0
    rows = read(run_folder() / "labeling" / "ledger.csv")
    labels = digits().train_labels
    assert len(rows) == 32
    for row in rows:
        assert unescape_formula(row["path"]).startswith("=unlabeled/")
        assert int(row["label"]) == int(labels[int(row["path"][-7:-4])])
