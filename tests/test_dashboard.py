"""The comparison in Weights & Biases: the objects, and the requests that a local server receives."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import write_run
from test_report import report, sweep  # noqa: F401 - a fixture
from test_tracking import server, stranger  # noqa: F401 - fixtures
from wandb_server import WandbServer

from sslpl.recording.run_tables import COLUMNS
from sslpl.report import dashboard, pairwise_tables, sections
from sslpl.report.comparison import DatasetComparison, compare_datasets
from sslpl.report.over_datasets_tables import overall_sections, ranks_table
from sslpl.report.read import read_runs
from sslpl.report.render import plain_text, render_markdown
from sslpl.report.results import results_table
from sslpl.tracking.trackers import metric_names

pytest.importorskip("wandb_workspaces")
GROUPED = [{"section": "config", "name": f"{key}.value"} for key in ("dataset_name", "method_name", "setting")]


def comparisons_of(root: Path) -> list[DatasetComparison]:
    return compare_datasets(read_runs([root])[0])


def within(tree: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the configs of all nested views of a type."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    if isinstance(tree, dict) and tree.get("viewType") == kind:
        yield tree["config"]
    for part in parts:
        yield from within(part, kind)


def texts(tree: Any) -> str:
    return json.dumps(tree, ensure_ascii=False)


def test_the_panels_show_keys_that_a_run_streams() -> None:
    by_cycle = metric_names(dict.fromkeys(COLUMNS, 0.0))
    found = [panel for panels in dashboard.panels().values() for panel in panels]
    lines = [panel for panel in found if type(panel).__name__ == "LinePlot"]
    assert {panel.y[0] for panel in lines if panel.x == "labeled"} <= set(by_cycle)
    assert all(panel.y[0].startswith(("train/", "finetune/")) for panel in lines if panel.x == "global_step")
    shown = {key for panel in lines for key in panel.y}
    asked = (
        "test/accuracy test/macro_f1 test/ece loss_rank_correlation pseudo_label_rate pseudo_label_accuracy train/loss"
    )
    assert set(asked.split()) < shown
    assert {f"{phase}_seconds" for phase in ("train", "finetune", "evaluate", "query")} < shown
    assert [panel.metrics for panel in found if panel not in lines] == [["aubc"], ["final_accuracy"]]
    assert {(panel.groupby_aggfunc, panel.groupby_rangefunc) for panel in found} == {("mean", "stddev")}


def test_the_command_saves_a_report_and_a_view(
    sweep: Path,  # noqa: F811
    server: WandbServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_run(sweep, "random", 0, [0.3, 0.4, 0.5, 0.6], dataset="cifar10")
    report(monkeypatch, sweep, "--wandb", "team/sslpl")
    page, view = server.views
    out = capfd.readouterr().out.splitlines()
    assert out[-2:] == [
        f"{server.url}/team/sslpl/reports/Comparison-of-13-runs--dg==",
        f"{server.url}/team/sslpl?nw={view['name'].removeprefix('nw-').removesuffix('-v')}",
    ]
    assert (page["entityName"], page["projectName"], page["type"]) == ("team", "sslpl", "runs")
    assert (view["entityName"], view["projectName"], view["type"]) == ("team", "sslpl", "project-view")

    (runs,) = view["spec"]["section"]["runSets"]
    assert runs["grouping"] == GROUPED
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"], chosen["op"]) == ({"section": "config", "name": "dataset_name"}, "IN")
    assert chosen["value"] == ["cifar10", "digits"]
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(dashboard.panels())
    curves = {tuple(config["metrics"]): config for config in within(sections, "Run History Line Plot")}
    assert curves["test/accuracy",]["xAxis"] == "labeled"
    assert curves["train/loss",]["xAxis"] == "global_step"
    assert {(c["groupAgg"], c["groupArea"]) for c in curves.values()} == {("mean", "stddev")}
    assert [config["metrics"] for config in within(sections, "Bar Chart")] == [["aubc"], ["final_accuracy"]]

    grids = [block for block in page["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 2
    for grid, dataset in zip(grids, ("cifar10", "digits"), strict=True):
        (runs,) = grid["metadata"]["runSets"]
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("team", "sslpl")
        assert runs["grouping"] == GROUPED[1:]
        (chosen,) = runs["filters"]["filters"]
        assert (chosen["key"]["name"], chosen["op"], chosen["value"]) == ("dataset_name", "=", dataset)
        shown = [config["metrics"][0] for config in within(grid, "Run History Line Plot")]
        assert shown == [panel.y[0] for found in dashboard.panels().values() for panel in found if hasattr(panel, "y")]
    whole = texts(page["spec"]["blocks"])
    for row in results_table(comparisons_of(sweep)).rows:
        assert all(plain_text(cell) in whole for cell in row)
    assert "entropy \N{MINUS SIGN} random" in whole
    assert "a single seed, so no interval and no test: random" in whole
    assert "Labels at which the mean curve" in whole


def test_runs_are_grouped_by_what_the_tracker_sends(server: WandbServer, tmp_path: Path) -> None:  # noqa: F811
    from test_tracking import live

    live(tmp_path / "run", range(2))
    (run,) = server.runs.values()
    assert set(dashboard.GROUPED) < set(run.config)
    assert run.upsert["groupName"] == "/".join(run.config[key] for key in dashboard.GROUPED)


def test_runs_that_are_not_finished_have_panels_too(tmp_path: Path) -> None:
    write_run(tmp_path, "random", 0, [0.3], state="running")
    blocks = dashboard.build_report(comparisons_of(tmp_path), ["a: cannot be read"], "team", "sslpl").blocks
    assert [type(block).__name__ for block in blocks].count("PanelGrid") == 1
    assert "MarkdownBlock" not in {type(block).__name__ for block in blocks}
    assert blocks[2].items == ["a: cannot be read"]


def test_the_tables_in_markdown(sweep: Path) -> None:  # noqa: F811
    (comparison,) = comparisons_of(sweep)
    rows = [
        line for line in render_markdown(pairwise_tables.tests_table(comparison)).splitlines() if line.startswith("|")
    ]
    assert len(rows) == 2 + 3
    assert {line.count("|") for line in rows} == {9}
    text = render_markdown(sections.savings_table(comparison))
    savings = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in savings[2:]] == ["entropy", "random", "sslpm"]
    assert overall_sections([comparison]) == []
    write_run(sweep, "random", 0, [0.3, 0.4, 0.5, 0.6], dataset="cifar10")
    write_run(sweep, "entropy", 0, [0.3, 0.4, 0.5, 0.7], dataset="cifar10")
    assert "| entropy | 1.00 | 1 | 1 |" in render_markdown(ranks_table(comparisons_of(sweep)))


def failing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        report(monkeypatch, *arguments)
    return int(ended.value.code or 0), capfd.readouterr().err


Failing = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("place", ["sslpl", "a/b/c", "a/", "/b", "a b/c"])
def test_a_place_is_an_entity_and_a_project(
    sweep: Path,  # noqa: F811
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, err = failing([str(sweep), "--wandb", place], monkeypatch, capfd)
    assert (code, err) == (2, f"sslpl: --wandb {place}: must be ENTITY/PROJECT, for example my-team/sslpl\n")


def test_a_missing_package_is_named(
    sweep: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    code, err = failing([str(sweep), "--wandb", "team/sslpl"], monkeypatch, capfd)
    assert code == 2
    assert err == "sslpl: --wandb: needs the package wandb-workspaces: pip install 'wandb-workspaces>=0.4.13'\n"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("nobody", "nobody is logged in: `wandb login`, or WANDB_API_KEY"),
        ("unknown project", "project 'team/other' not found"),
        ("refused", "connection refused"),
        (500, "giving up after 3 attempt(s)"),
        (401, "401"),
    ],
)
def test_what_w_and_b_does_not_take_is_one_line(
    sweep: Path,  # noqa: F811
    server: WandbServer,  # noqa: F811
    failure: int | str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = "team/other" if failure == "unknown project" else "team/sslpl"
    if failure == "nobody":
        monkeypatch.delenv("WANDB_API_KEY")
    if failure == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    server.failure = failure if isinstance(failure, int) else None
    code, err = failing([str(sweep), "--wandb", place], monkeypatch, capfd)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"sslpl: --wandb {place}: ")
    assert said in lines[0]
    assert server.views == []
