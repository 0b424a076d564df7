import csv
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result
from folders import CLASSES, write_run

from sslpl.recording.run_tables import aubc
from sslpl.report import __main__ as main
from sslpl.report import sections
from sslpl.report.caveats import caveats
from sslpl.report.charts import chart_data
from sslpl.report.comparison import DatasetComparison, area, compare_datasets, mean_curve
from sslpl.report.csv_files import csv_files
from sslpl.report.figures import draw_comparison, png_bytes
from sslpl.report.over_datasets import method_ranks, total_penalties
from sslpl.report.page import render_page
from sslpl.report.pairwise import paired_tests
from sslpl.report.queries import class_shares, overlap_matrix, queried, query_balance
from sslpl.report.read import read_run, read_runs
from sslpl.report.render import render_html, render_latex, render_markdown, render_terminal
from sslpl.report.savings import label_savings
from sslpl.report.styles import arm_styles
from sslpl.report.table import Bar, Name, Table, Text, Value


def report(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["report", *map(str, arguments)])
    main.main()


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def only_comparison(root: Path) -> DatasetComparison:
    runs, unreadable = read_runs([root])
    assert not unreadable
    (comparison,) = compare_datasets(runs)
    return comparison


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Writes the runs of three methods with three seeds each, and of a fully supervised ceiling."""
    root = tmp_path / "runs"
    for seed in range(3):
        write_run(root, "random", seed, [0.50 + 0.01 * seed, 0.60, 0.65, 0.70])
        write_run(root, "entropy", seed, [0.50 + 0.01 * seed, 0.66 + 0.001 * seed, 0.72, 0.78])
        write_run(root, "sslpm", seed, [0.48, 0.60, 0.64, 0.69 + 0.002 * seed], correlation=0.5 + 0.1 * seed)
        write_run(root, "full", seed, [0.90], budget={"initial": 1.0, "cycles": 1})
    return root


def test_the_report_agrees_with_the_metrics_files(
    sslpl: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sslpl("-m", *TINY, "method=random,scal", "seed=0,1").code == 0
    report(monkeypatch, "outputs", "--output", "table", "--markdown")
    assert "| digits | random | 2 |" in capfd.readouterr().out
    rows = {row["label"]: row for row in table(Path("table/summary.csv"))}
    assert set(rows) == {"random", "scal"}
    finals = [float(table(path)[-1]["test_accuracy"]) for path in Path("outputs/digits/random").glob("*/metrics.csv")]
    assert float(rows["random"]["final_accuracy_mean"]) == pytest.approx(sum(finals) / 2)
    assert float(rows["random"]["final_accuracy_std"]) == pytest.approx(abs(finals[0] - finals[1]) / 2**0.5)
    stored = [json.loads(path.read_text())["aubc"] for path in Path("outputs/digits/random").glob("*/summary.json")]
    assert float(rows["random"]["aubc_mean"]) == pytest.approx(sum(stored) / 2)
    assert rows["random"]["loss_rank_correlation_mean"] == ""
    assert rows["scal"]["loss_rank_correlation_mean"]
    assert {path.name for path in Path("table").iterdir()} == {
        *("index.html", "curves-digits.png", "summary.tex"),
        *("summary.csv", "curves.csv", "tests.csv", "wins.csv", "savings.csv", "runs.csv"),
    }


def test_a_curve_is_the_mean_over_seeds(sweep: Path) -> None:
    (random,) = [arm for arm in only_comparison(sweep).arms if arm.method_name == "random"]
    points = mean_curve(random)
    assert [labeled for labeled, _ in points] == [20, 40, 60, 80]
    assert points[0][1].mean == pytest.approx(0.51)
    assert points[0][1].std == pytest.approx(0.01)
    assert area(random).mean == pytest.approx((0.51 / 2 + 0.60 + 0.65 + 0.70 / 2) / 3)


def test_arms_are_ordered_by_area_and_the_ceiling_is_apart(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    assert [arm.name for arm in comparison.arms] == ["entropy", "random", "sslpm"]
    assert [arm.name for arm in comparison.ceilings] == ["full"]
    assert "full" not in {test.first.name for test in paired_tests(comparison)}


def test_the_tests_compare_shared_seeds(sweep: Path) -> None:
    write_run(sweep, "margin", 1, [0.5, 0.6, 0.7, 0.8])
    write_run(sweep, "margin", 2, [0.5, 0.6, 0.7, 0.9])
    write_run(sweep, "margin", 7, [0.1, 0.1, 0.1, 0.1])
    found = {(test.first.name, test.second.name): test for test in paired_tests(only_comparison(sweep))}
    assert len(found) == 6
    test = next(test for names, test in found.items() if set(names) == {"margin", "random"})
    assert test.result.n == 2
    for test in found.values():
        assert test.result.p <= test.adjusted <= 1


def test_random_needs_as_many_labels_as_it_has(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    by_name = {arm.name: label_savings(comparison, arm) for arm in comparison.arms}
    assert [saving.labels for saving in by_name["random"]] == pytest.approx([40, 60, 80])
    assert [saving.target for saving in by_name["random"]] == pytest.approx([0.6, 0.65, 0.7])
    assert by_name["entropy"][-1].labels == pytest.approx(40 + 20 * (0.70 - 0.661) / (0.72 - 0.661))
    assert by_name["entropy"][-1].reached == 3
    assert math.isnan(by_name["sslpm"][-1].labels)
    assert by_name["sslpm"][-1].seeds is None


def test_savings_skip_accuracies_that_random_sampling_had_before(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.7, 0.6, 0.8])
    comparison = only_comparison(tmp_path)
    assert [saving.target for saving in label_savings(comparison, comparison.arms[0])] == pytest.approx([0.7, 0.8])


def test_ranks_over_datasets(sweep: Path) -> None:
    for seed in range(2):
        write_run(sweep, "random", seed, [0.5, 0.6], dataset="cifar10")
        write_run(sweep, "sslpm", seed, [0.5, 0.7], dataset="cifar10")
    labels, by_dataset, means = method_ranks(compare_datasets(read_runs([sweep])[0]))
    assert labels == ["random", "sslpm"]
    assert by_dataset.tolist() == [[2, 1], [1, 2]]  # cifar10, digits
    assert means.tolist() == [1.5, 1.5]


def test_penalties_over_datasets_add_up(tmp_path: Path) -> None:
    for dataset in ("cifar10", "digits"):
        for seed in range(3):
            write_run(tmp_path, "random", seed, [0.5, 0.6 + 0.001 * seed], dataset=dataset)
            write_run(tmp_path, "sslpm", seed, [0.5, 0.7 - 0.001 * seed], dataset=dataset)
            write_run(tmp_path, "only_here", seed, [0.5, 0.9], dataset="digits") if dataset == "digits" else None
    labels, total = total_penalties(compare_datasets(read_runs([tmp_path])[0]))
    assert labels == ["random", "sslpm"]
    assert total[1, 0] == 1.0  # half of the cycles of each
    assert total[0, 1] == 0.0


def test_a_run_of_a_dead_process_is_killed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "random", 0, [0.5], state="running")
    process = subprocess.Popen(["true"])
    process.wait()
    for pid, state in ((process.pid, "killed"), (os.getpid(), "running")):
        owner = {"state": "running", "process": pid, "host": socket.gethostname()}
        (folder / "status.json").write_text(json.dumps(owner))
        assert read_run(folder).state == state


def test_other_files_are_no_runs(sweep: Path) -> None:
    other = sweep / "digits/random/seed0-xxxxxxxx/wandb/files/config.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("wandb_version: 1")
    runs, unreadable = read_runs([sweep])
    assert len(runs) == 12
    assert unreadable == []


def test_queries_are_counted_without_the_first_labels(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    for arm in comparison.arms:
        run = arm.runs[0]
        assert len(queried(run).index) == 60
        assert class_shares(arm, CLASSES).sum() == pytest.approx(1)
        assert len(query_balance(arm, CLASSES)) == 4
    matrix = overlap_matrix(comparison)
    assert np.allclose(matrix, matrix.T)
    chosen = [[set(run.queries.index[20:].tolist()) for run in arm.runs] for arm in comparison.arms]
    same_seed = [len(a & b) / len(a | b) for a, b in zip(chosen[0], chosen[1], strict=True)]
    assert matrix[0, 1] == pytest.approx(np.mean(same_seed))
    two_seeds = [len(a & b) / len(a | b) for a, b in combinations(chosen[0], 2)]
    assert matrix[0, 0] == pytest.approx(np.mean(two_seeds))


def test_settings_are_kept_apart_and_named(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        for seed in range(2):
            write_run(tmp_path, "random", seed, [0.5, 0.6 + rate + 0.01 * seed], training={"rate": rate})
    comparison = only_comparison(tmp_path)
    assert [arm.name for arm in comparison.arms] == ["random [training.rate=0.2]", "random [training.rate=0.1]"]
    assert any("not all of one protocol: training.rate" in line for line in caveats(comparison))
    assert len(paired_tests(comparison)) == 1  # one method: the setting is what is compared


def test_methods_of_other_protocols_are_not_tested_against_one_another(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.5, 0.6])
        write_run(tmp_path, "sslpm", seed, [0.5, 0.7 + 0.1 * seed], training={"epochs": 9})
        write_run(tmp_path, "scal", seed, [0.5, 0.8 + 0.1 * seed], training={"module_rate": 9.0})
    pairs = [{test.first.name, test.second.name} for test in paired_tests(only_comparison(tmp_path))]
    assert pairs == [{"random", "scal"}]


def test_caveats(sweep: Path) -> None:
    assert caveats(only_comparison(sweep)) == []
    write_run(sweep, "margin", 0, [0.5, 0.6, 0.7], commit="b" * 40, dirty=True, budget={"cycles": 3})
    write_run(sweep, "margin", 1, [0.5], state="failed", error="out of memory")
    write_run(sweep, "bald", 0, [], state="waiting")
    found = "\n".join(caveats(only_comparison(sweep)))
    for part in (
        "not all of one commit: aaaaaaaa (14), bbbbbbbb (1)",
        "1 of 15 runs had uncommitted changes",
        "not all of one protocol: budget.cycles",
        "other numbers of labels than the rest: margin [budget.cycles=3]",
        "margin [budget.cycles=3] has no finished run of seed 1, 2",
        "a single seed, so no interval and no test: margin [budget.cycles=3]",
        "margin has 2 settings",
        "1 failed, 1 waiting",
    ):
        assert part in found


def test_unfinished_runs_do_not_count_and_are_shown(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv_files([only_comparison(sweep)])["summary.csv"]
    write_run(sweep, "random", 3, [0.1, 0.1], state="running")
    write_run(sweep, "bald", 0, [0.1], state="failed", error="out of <memory>")
    comparison = only_comparison(sweep)
    assert csv_files([comparison])["summary.csv"] == before
    text = render_page([comparison], arm_styles([comparison]), [])
    assert "1 of 4 cycles: out of &lt;memory&gt;" in text
    assert "missing" in text
    assert '"partial": [["random", [[20.0, 0.1], [40.0, 0.1]]]' in text


def test_only_unfinished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs", "random", 0, [], state="waiting")
    write_run(tmp_path / "runs", "sslpm", 0, [0.5], state="interrupted")
    report(monkeypatch, tmp_path / "runs", "--output", tmp_path / "out")
    assert "no finished run yet" in capfd.readouterr().out
    assert "interrupted" in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.csv", "cycle,labeled\n0,20\n"),
        ("metrics.csv", ""),
        ("metrics.csv", "cycle,labeled,test_accuracy\n0,20,0.5\n"),
        ("metrics.csv", "cycle,labeled,test_accuracy\n0,20,much\n"),
        ("queries.csv", "cycle,index,label,score\nx\n"),
        ("config.yaml", "seed: ["),
        ("config.yaml", "[]"),
        ("status.json", "{"),
        ("status.json", "[]"),
        ("provenance.json", "\x00"),
    ],
)
def test_a_damaged_folder_is_named_and_left_out(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    folder = write_run(sweep, "margin", 0, [0.5, 0.6, 0.7, 0.8])
    (folder / file).write_text(content)
    report(monkeypatch, sweep, "--markdown")
    out, err = capfd.readouterr()
    assert "margin" not in out
    assert f"warning: {folder.resolve()}: cannot be read" in err


def test_a_copy_counts_once(sweep: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(sweep / "copy", "random", 0, [0.5, 0.6, 0.65, 0.7])
    report(monkeypatch, sweep, sweep / "copy", "--markdown")
    out, err = capfd.readouterr()
    assert "| digits | random | 3 |" in out
    assert "digits/random, seed 0: 2 copies" in err


@pytest.mark.parametrize("there", [True, False])
def test_bad_input_is_one_line_and_exit_code_2(
    there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        report(monkeypatch, tmp_path if there else tmp_path / "nowhere")
    assert ended.value.code == 2
    err = capfd.readouterr().err
    assert err.startswith("sslpl: no run below" if there else "sslpl: no such folder")
    assert err.count("\n") == 1


def test_latex_is_escaped_and_marks_the_best(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_run(sweep, "sslpm+query=learning_loss", seed, [0.9, 0.9, 0.9, 0.9])
    report(monkeypatch, sweep, "--latex")
    out = capfd.readouterr().out
    assert r"sslpm+query=learning\_loss & 3 & $\mathbf{90.00} \pm 0.00$" in out
    assert out.count(r"\mathbf") == 1  # the ceiling is no method
    assert out.count(r"\\") == 6


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, "a<script>+b", 0, [0.5, 0.6], dataset="{{data}}<i>")
    comparison = only_comparison(tmp_path)
    text = render_page([comparison], arm_styles([comparison]), ["{{style}}<b>"])
    assert "a<script>" not in text
    assert "<i>" not in text.replace("<i class", "")
    (data,) = re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(data)[0]["arms"][0]["name"] == "a<script>+b"


def test_a_method_keeps_its_style(sweep: Path) -> None:
    few = arm_styles([only_comparison(sweep)])
    write_run(sweep, "bald", 0, [0.5, 0.6, 0.7, 0.8])
    many = arm_styles([only_comparison(sweep)])
    assert all(few[name].color == many[name].color for name in ("random", "sslpm", "full"))
    assert len({(style.color, style.dash) for style in many.values()}) == len(many)


def test_the_page_asks_for_nothing_else(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    text = render_page([comparison], arm_styles([comparison]), [])
    assert re.findall(r'(?:src|href)="(?!#)', text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|fetch\(|XMLHttpRequest", text) == []
    assert "default-src 'none'" in text


def test_a_run_of_the_framework_is_read_whole(sslpl: Callable[..., Result]) -> None:
    assert sslpl(*TINY, "method=scal").code == 0
    (status,) = Path("outputs").glob("**/status.json")
    run = read_run(status.parent.resolve())
    assert (run.dataset, run.method_name, run.seed, run.state) == ("digits", "scal", 0, "finished")
    assert len(run.queries.index) == 72
    assert run.queries.cycle.tolist() == sorted([0, 1, 2] * 24)
    assert aubc(run.rows) == pytest.approx(json.loads(status.read_text())["aubc"])
    assert run.provenance["precision"] in ("float32", "bfloat16")


def test_the_charts_hold_the_means_over_seeds(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    charts = {chart["title"]: chart for chart in chart_data(comparison, arm_styles([comparison]))["charts"]}
    accuracy = dict(charts["Test accuracy"]["series"])
    half = 4.302653 * 0.01 / math.sqrt(3)  # Student's t for three seeds
    assert accuracy["random"][0] == pytest.approx([20, 0.51, 0.51 - half, 0.51 + half, 3, half])
    assert charts["Test accuracy"]["ceilings"] == [["full", pytest.approx(0.9)]]
    over_time = dict(charts["Test accuracy over time"]["series"])
    assert [point[0] for point in over_time["random"]] == [3, 6, 9, 12]
    (correlation,) = charts["Rank correlation of predicted and true loss"]["series"]
    assert correlation[0] == "sslpm"
    assert correlation[1][0][1] == pytest.approx(0.6)
    assert "Accuracy of the pseudo-labels" not in charts


def test_bands_end_where_a_metric_ends_and_tables_keep_the_numbers(tmp_path: Path) -> None:
    for seed, accuracy in enumerate(([0.01, 0.99], [0.2, 0.8])):  # the ends of their intervals are impossible
        write_run(tmp_path, "random", seed, accuracy)
    comparison = only_comparison(tmp_path)
    styles = arm_styles([comparison])
    charts = {chart["title"]: chart for chart in chart_data(comparison, styles)["charts"]}
    half = 12.7062 * 0.095  # Student's t for two seeds
    for title in ("Test accuracy", "Test accuracy over time"):
        first, last = dict(charts[title]["series"])["random"]
        assert first[1:] == pytest.approx([0.105, 0, 1, 2, half], rel=1e-4)
        assert last[1:] == pytest.approx([0.895, 0, 1, 2, half], rel=1e-4)
        assert charts[title]["range"] == [0, 1]
    nll = charts["Negative log-likelihood on the test set"]
    assert dict(nll["series"])["random"][1][1:] == pytest.approx([0.105, 0, 0.105 + half, 2, half], rel=1e-4)
    assert nll["range"] == [0, None]
    (axes,) = draw_comparison(comparison, styles).axes
    (drawn,) = axes.collections
    assert drawn.get_paths()[0].vertices[:, 1].min() >= 0
    assert drawn.get_paths()[0].vertices[:, 1].max() <= 1
    points = list(csv.DictReader(csv_files([comparison])["curves.csv"].splitlines()))
    assert float(points[0]["low"]) == pytest.approx(0.105 - half, rel=1e-4)


def test_the_results_table_says_what_is_saved_and_gained(sweep: Path) -> None:
    comparison = only_comparison(sweep)
    (table,) = sections.dataset_sections(comparison)[0].tables
    text = render_html(table, {})
    assert "53<small>33% fewer than 80</small>" in text  # entropy: 40 + 20 x 0.039 / 0.059
    assert "not reached" in text  # sslpm
    assert "<td>95.00</td>" in text  # random: 19 points in 12 seconds


def test_the_figure_names_every_arm_inside_its_edges(sweep: Path) -> None:
    write_run(sweep, "sslpm+query.scorer=entropy+ssl.threshold=0.8", 0, [0.5, 0.6, 0.7, 0.8])
    comparison = only_comparison(sweep)
    figure = draw_comparison(comparison, arm_styles([comparison]))
    png_bytes(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [arm.name for arm in comparison.arms] + [
        "full (all labels)"
    ]
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in legend.get_texts())
    (axes,) = figure.axes
    assert axes.get_tightbbox().x1 <= legend.get_window_extent().x0 + 1
    low, high = axes.get_ylim()
    assert low < 0.48 < 0.9 < high


def test_the_report_starts_without_torch() -> None:
    code = "import sys, sslpl.report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_runs_of_the_version_before_are_read(tmp_path: Path) -> None:
    """Their ids have 8 digits, targets name modules, and starting weights are a path in `training.init`."""
    for seed, init in enumerate(("/here/weights.pt", "/there/weights.pt")):
        written = write_run(tmp_path, "random", seed, [0.5, 0.6], query={"_target_": "sslpl.query.sampling.random"})
        config = json.loads((written / "config.yaml").read_text()) | {"init_content": "0123abcd"}
        config["training"]["init"] = init
        (written / "config.yaml").write_text(json.dumps(config))
        written.rename(written.with_name(f"seed{seed}-0123abcd"))
    (arm,) = only_comparison(tmp_path).arms
    assert arm.seeds == [0, 1]  # one setting: the content of the weights counts and not their path
    assert arm.runs[0].values["init_content"] == "0123abcd"


def test_every_format_holds_every_kind_of_cell() -> None:
    value = Value(-1.5, -2.0, -1.0, strong=True, heat=0.5)
    spread = Value(60.0, 59.0, 61.0, std=0.5)
    cells = [Name("a_b", colored=True), Text("3", "of 4", style="finished"), value, spread, Bar({"train": 0.5}), "x<y"]
    table = Table(["", "b", "c", "d", "e", "f"], [cells], caption="c & d", title="t")
    html = render_html(table, {"a_b": "#123456"})
    for part in (
        '<p><b>t</b></p><p>c &amp; d</p><div class="scroll"',
        '<th scope="row"><span class="named"><span class="dot" style="--c:#123456"></span><span>a_<wbr>b</span></span>',
        '<td class="finished">3<small>of 4</small></td>',
        '<td style="--heat:50%"><b>\N{MINUS SIGN}1.50</b><small>\N{MINUS SIGN}2.00 to \N{MINUS SIGN}1.00</small></td>',
        "<td>60.00 ± 0.50<small>59.00 to 61.00</small></td>",
        "<i class='train' style='width:50.00%'></i>",
        "<td>x&lt;y</td>",
    ):
        assert part in html
    text = "a_b | 3 (of 4) | \N{MINUS SIGN}1.50 (\N{MINUS SIGN}2.00 to \N{MINUS SIGN}1.00) | 60.00 ± 0.50 |  | x<y"
    assert render_markdown(table).splitlines() == [
        *("**t**", "", "c & d", "", "|  | b | c | d | e | f |", "| --- | --- | --- | --- | --- | --- |", f"| {text} |")
    ]
    assert r"a\_b & 3 (of 4) & $\mathbf{-1.50}$ (-2.00 to -1.00) & $60.00 \pm 0.50$ &  & x<y \\" in render_latex(table)
    assert [next(iter(column.cells)) for column in render_terminal(table).columns] == text.split(" | ")


def test_what_labels_cost_and_how_good_they_are_has_charts(tmp_path: Path) -> None:
    for seed in (0, 1):
        columns = {
            "labeling_seconds": [1800.0 + 1800 * seed, 3600.0],
            "answers": [40.0, 80.0],
            "wasted_label_rate": [0.25, 0.5],
            "annotator_kappa": [0.6, 0.7],
            "label_accuracy": [0.9, 0.95],
        }
        write_run(tmp_path, "random", seed, [0.5, 0.7], columns=columns)
        write_run(tmp_path, "entropy", seed, [0.5, 0.8])
    (comparison,) = compare_datasets(read_runs([tmp_path])[0])
    charts = {chart["title"]: chart for chart in chart_data(comparison, arm_styles([comparison]))["charts"]}
    hours, answers = (charts[f"Test accuracy over {what}"] for what in ("the time of labeling", "answers"))
    assert [name for name, _ in hours["series"]] == [name for name, _ in answers["series"]] == ["random"]
    assert [point[:2] for point in hours["series"][0][1]] == [[0.75, 0.5], [1.0, 0.7]]
    assert [point[0] for point in answers["series"][0][1]] == [40, 80]
    wasted = charts["Share of wasted labels in each batch: images of no class"]
    assert [point[1] for point in wasted["series"][0][1]] == [0.25, 0.5]
    assert {"Agreement of the annotators (kappa)", "Share of right labels"} <= set(charts)
