import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result

from sslpl import report


def test_the_report_agrees_with_the_metrics_files(
    sslpl: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sslpl("-m", *TINY, "method=random,scal", "seed=0,1").code == 0
    monkeypatch.setattr("sys.argv", ["report", "outputs", "--output", "table", "--markdown"])
    report.main()
    assert "| digits | random | 2 |" in capfd.readouterr().out
    with Path("table/summary.csv").open() as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"random", "scal"}
    finals = []
    for path in Path("outputs/digits/random").glob("*/metrics.csv"):
        finals.append(float(list(csv.DictReader(path.open()))[-1]["test_accuracy"]))
    assert float(rows["random"]["final_accuracy_mean"]) == pytest.approx(sum(finals) / 2)
    assert float(rows["random"]["final_accuracy_std"]) == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    assert rows["random"]["loss_rank_correlation_mean"] == ""
    assert rows["scal"]["loss_rank_correlation_mean"]


def test_settings_are_not_mixed(sslpl: Callable[..., Result]) -> None:
    assert sslpl("-m", *TINY, "method=random", "training.rate=0.1,0.2").code == 0
    runs, unfinished = report.read_runs([Path("outputs")])
    assert unfinished == 0
    assert [summary.n for summary in report.summarize(runs)] == [1, 1]


def test_nothing_to_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="no finished run below"):
        report.main()
