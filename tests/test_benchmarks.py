"""The benchmarks run; their figures mean nothing at these sizes."""

import json
from pathlib import Path

import pytest
import torch
from test_docs import ROOT


@pytest.mark.slow
def test_queries_are_measured_each_in_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import queries

    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["queries.py", "random", "typiclust", "--small", "--json", str(file)])
    assert queries.main() == 0
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["random", "typiclust"]
    assert [[point["unlabeled"] for point in row["points"]] for row in rows] == [[400]] * 2
    assert all(point["seconds"] > 0 and point["peak_mib"] >= 0 for row in rows for point in row["points"])
    assert "typiclust" in capsys.readouterr().out


def test_growth_is_measured_at_a_quarter_half_and_whole_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import queries

    sizes = [part.unlabeled for part in queries.pool_shares(queries.Workload(), grow=True)]
    assert sizes == [2500, 5000, 10000]
    assert queries.pool_shares(queries.SMALL, grow=False) == [queries.SMALL]


def test_growth_is_the_slope_of_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.queries import growth

    points = [{"unlabeled": n, "seconds": n**1.5, "peak_mib": 1e-6 * n} for n in (100, 200, 400)]
    assert growth(points) == {"seconds_exponent": pytest.approx(1.5), "peak_mib_exponent": None}
    assert growth(points[-1:])["seconds_exponent"] is None


@pytest.mark.slow
def test_a_step_with_a_task_method_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import task_ssl

    file = tmp_path / "row.json"
    monkeypatch.setattr(
        "sys.argv", ["task_ssl.py", "--batch", "1", "--pool", "30", "--repeats", "1", "--json", str(file)]
    )
    assert task_ssl.main() == 0
    row = json.loads(file.read_text())
    assert row["images_per_step"] == 15
    assert row["share"] == row["baseline_seconds"] / row["ours_seconds"] > 0


def test_large_pools_are_measured_under_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import large

    file = tmp_path / "rows.json"
    names = ["scoring", "predicted_loss"]
    monkeypatch.setattr("sys.argv", ["large.py", *names, "--small", "--sizes", "50", "300", "--json", str(file)])
    assert large.main() == 0
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == names
    assert [point["unlabeled"] for point in rows[0]["points"]] == [50, 300]
    assert all(0 < point["private_mib"] <= point["resident_mib"] for row in rows for point in row["points"])
    assert "predicted_loss | 300 | " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["large.py", "predicted_loss", "--small", "--sizes", "300", "--limit", "0.01"])
    assert large.main() == 1  # the process already exceeds the limit


def test_growth_is_that_of_the_last_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.large import exponents

    points = [{"unlabeled": n, "processor_seconds": n**1.5, "private_mib": 5.0} for n in (10, 100, 1000)]
    points[0]["processor_seconds"] = 1.0
    assert exponents(points) == {"seconds_exponent": 1.5, "private_mib_exponent": 0.0}
    assert exponents([points[0], {"unlabeled": 9, "error": ""}])["seconds_exponent"] is None


def test_an_import_is_measured_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import run

    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["run.py", "import_select", "--repeats", "1", "--json", str(file)])
    assert run.main() == 0
    (row,) = json.loads(file.read_text())
    assert [[row["ours_seconds"], row["processor_seconds"]]] == row["ours_samples"]
    assert row["processor_seconds"] > 0


def test_a_part_that_fails_or_hangs_costs_none_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    row = """print('{"step": "eager", "step_seconds": 0.5}', flush=True);"""
    codes = {"works": row, "fails": f"{row} raise SystemExit(3)", "hangs": f"{row} import time; time.sleep(60)"}
    for name, code in codes.items():
        limit = 2.0 if name == "hangs" else 60.0
        monkeypatch.setitem(gpu.PARTS, name, gpu.Part(lambda _, code=code: ["-c", code], limit))
    rows: list[dict[str, object]] = []
    options = gpu.Options("cpu", True, None)
    assert [gpu.run_part(name, options, rows.append) for name in codes] == [True, False, False]
    assert [row["part"] for row in rows if row.get("step") == "eager"] == list(codes)
    assert [row["exit_code"] for row in rows if "exit_code" in row] == [0, 3]
    assert rows[-1] == {"part": "hangs", "error": "stopped after 2 s"}


@pytest.mark.slow
def test_every_measurement_on_a_gpu_is_rehearsed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    options = gpu.Options("cpu", True, None)
    (killed,) = gpu.resume(options)
    assert killed == {"killed": True, "identical": True}
    kernels = list(gpu.profile(options))
    assert "convolution_backward" in kernels[0]["kernel"]
    assert 0.5 < sum(row["share"] for row in kernels) <= 1
    (fast,) = gpu.fast_recipe(options)
    assert fast["seconds"] > fast["train_seconds"] > 0
    assert [row["runs"] for row in gpu.concurrent(options)] == [1, 2]
    assert [row["runs"] for row in gpu.interleaved(options)] == [1, 2, 1, 2]
    assert [row["step"] for row in gpu.joint_step(options)] == ["eager", "compiled"]


@pytest.mark.slow
def test_ways_of_convolving_on_a_cpu_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cpu_convolutions

    monkeypatch.setattr("sys.argv", ["cpu_convolutions.py", "--small", "--repeats", "1"])
    threads = torch.get_num_threads()
    assert cpu_convolutions.main() == 0
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert all(way in out for way in ("float32", "library", "products", "packed", "plain", "fused"))


@pytest.mark.slow
def test_a_step_of_the_fine_tune_is_compared_with_the_conventional_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import measure, run

    monkeypatch.setattr(measure, "clock", measure.clock)
    file, threads = tmp_path / "rows.json", torch.get_num_threads()
    options = ["--small", "--repeats", "2", "--threads", "1", "--processor-time", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["run.py", "finetune_step", *options])
    assert run.main() == 0
    torch.set_num_threads(threads)
    (row,) = json.loads(file.read_text())
    assert row["ratio"] == row["baseline_seconds"] / row["ours_seconds"] > 0
