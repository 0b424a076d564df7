"""Builds the page of 100 synthetic runs, opens it in headless Chromium and operates it: `make check`."""

import csv
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import numpy as np
from folders import write_run

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("sslpm", "scal", "learning_loss", "random", "entropy", "margin", "core_set", "badge", "typiclust")
DATASETS, SEEDS, LIMIT = ("cifar10", "cifar100"), 5, 10.0
BUDGET = {"initial": 2500, "per_cycle": 2500, "cycles": 6}
WIDTHS = (1366, 390)  # pixels: a laptop, a phone

WATCH = "<script>window.errors = []; addEventListener('error', (e) => errors.push(String(e.message)));</script>"
USE = """<script>{
const root = document.getElementById("dataset-0");
const drawn = (name) => [...root.querySelectorAll("path.curve")].filter((p) => p.dataset.arm === name).length;
const press = (name) => [...root.querySelectorAll("button")].find((b) => b.dataset.arm === name).click();
const tip = root.querySelector(".tip");
const outcome = { before: drawn("entropy"), width: innerWidth, scroll: document.documentElement.scrollWidth };
outcome.paths = [...document.querySelectorAll("path.curve")].map((p) => p.getAttribute("d"));
outcome.sizes = [...document.querySelectorAll("figure svg")].map((s) => s.getBBox().width * s.getBBox().height);
press("entropy");
outcome.hidden = [drawn("entropy"), drawn("random")];
press("entropy");
outcome.again = drawn("entropy");
const move = () => {
  const svg = root.querySelector("figure svg"), box = svg.getBoundingClientRect();
  const at = { clientX: box.left + 0.999 * box.width, clientY: box.top + 0.5 * box.height, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  return svg;
};
outcome.first = tip.hidden;
const svg = move();
outcome.tip = tip.hidden ? "" : tip.innerText;
const places = [tip.getBoundingClientRect(), svg.getBoundingClientRect()];
outcome.inside = places[0].left >= 0 && places[0].right <= innerWidth + 1;
svg.dispatchEvent(new PointerEvent("pointerleave"));
outcome.left = tip.hidden;
press("entropy");
move();
outcome.tipWithout = tip.innerText;
const [{ arms, charts }] = JSON.parse(document.getElementById("data").textContent);
const brief = charts.find((chart) => chart.axis === "seconds");
for (const [, line] of brief.series) for (const point of line) point[0] /= 12;
const figure = document.getElementById(`chart-0-${charts.indexOf(brief)}`);
draw(figure, brief, Object.fromEntries(arms.map((arm) => [arm.name, arm])), new Set());
outcome.ticks = [...figure.querySelectorAll("text[text-anchor=middle]")].map((text) => text.textContent);
outcome.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
outcome.errors = window.errors;
const note = document.createElement("pre");
note.id = "outcome";
note.textContent = encodeURIComponent(JSON.stringify(outcome));
document.body.append(note);
}</script>"""
FRAME = """<body style="margin: 0"><iframe id="frame" style="width: WIDTHpx; height: 844px; border: 0"></iframe><script>
frame.onload = () => document.body.append(frame.contentDocument.getElementById("outcome") ?? "no outcome");
frame.srcdoc = PAGE;
</script>"""  # Chromium's window has a minimum width of 500 pixels


def make_runs(folder: Path) -> int:
    """Writes the runs; returns how many."""
    rng = np.random.default_rng(0)
    cells = [(dataset, method, seed) for dataset in DATASETS for method in METHODS for seed in range(SEEDS)]
    for dataset, method, seed in cells:
        curve = 0.9 - 0.4 * np.exp(-np.arange(6) / 2) + rng.normal(0, 0.01, 6) + 0.01 * (method != "random")
        write_run(folder, method, seed, curve.tolist(), dataset=dataset, correlation=0.7, budget=BUDGET)
    for dataset in DATASETS:
        for seed in range(SEEDS):
            write_run(folder, "full", seed, [0.95], dataset=dataset, budget={"initial": 1.0, "cycles": 1})
    return len(cells) + len(DATASETS) * SEEDS


def build(runs: Path, output: Path) -> float:
    """Runs the report's command; returns its seconds on the processor, which do not depend on other work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sslpl.report", runs, "--output", output], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def operate(browser: str, page: Path, width: int) -> dict[str, Any]:
    """Opens a page, toggles and hovers; returns the observations of the script."""
    probe = page.with_name("probe.html")
    text = page.read_text()
    text = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{USE}</body>", 1)
    probe.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", json.dumps(text).replace("<", "\\u003c")))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=2000"]
    with TemporaryDirectory(prefix="sslpl-chromium-") as profile:
        command = [browser, *options, f"--user-data-dir={profile}", "--window-size=1400,900", "--dump-dom"]
        done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout)
    assert found, f"the script of the page did not finish:\n{done.stdout[-500:]}\n{done.stderr[-1000:]}"
    outcome: dict[str, Any] = json.loads(unquote(found[1]))
    assert outcome["width"] == width, outcome["width"]
    return outcome


def check_outcome(outcome: dict[str, Any], expected: float) -> None:
    """AssertionError unless curves are drawn, toggling and hovering work and nothing was fetched."""
    assert outcome["errors"] == [], outcome["errors"]
    assert outcome["fetched"] == [], outcome["fetched"]
    assert len(outcome["paths"]) > len(DATASETS) * len(METHODS), "curves are missing"
    finite = re.compile(r"(?:[ML]-?\d+(?:\.\d+)?,-?\d+(?:\.\d+)?)+(?:H\d+(?:\.\d+)?)?")
    assert all(finite.fullmatch(path) for path in outcome["paths"]), "a curve has a coordinate that is no number"
    assert min(outcome["sizes"]) > 0, "a chart has no size"
    assert outcome["before"] > 0, "entropy is not drawn"
    assert outcome["hidden"][0] == 0, "toggling did not hide entropy"
    assert outcome["hidden"][1] > 0, "toggling entropy hid random sampling"
    assert outcome["again"] == outcome["before"], "toggling twice did not bring entropy back"
    assert outcome["first"], "a tip is shown before any hovering"
    assert outcome["left"], "the tip stays when the pointer has left"
    assert "15,000 labeled images" in outcome["tip"], outcome["tip"]
    assert re.search(rf"entropy\s+{100 * expected:.2f}%", outcome["tip"]), f"{expected} is not in {outcome['tip']}"
    assert outcome["inside"], "the tip is cut off"
    assert "entropy" not in outcome["tipWithout"], "the tip shows a hidden method"
    assert "random" in outcome["tipWithout"], "the tip shows no other method"
    assert len(outcome["ticks"]) > 2, "an axis of time has no ticks"
    assert len(set(outcome["ticks"])) == len(outcome["ticks"]), f"an axis of 1.5 s has the ticks {outcome['ticks']}"
    assert outcome["scroll"] <= outcome["width"], f"{outcome['scroll']} pixels on {outcome['width']}"


def last_mean(output: Path) -> float:
    """Reads the last mean accuracy of entropy on the first dataset from curves.csv."""
    with (output / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == DATASETS[0] and row["label"] == "entropy"]
    return float([row for row in rows if row["measure"] == "test_accuracy"][-1]["mean"])


def main() -> None:
    """Exits with 0 if the page works; without Chromium only its creation is checked."""
    with TemporaryDirectory(prefix="sslpl-report-") as name:
        runs, output = Path(name) / "runs", Path(name) / "report"
        n = make_runs(runs)
        seconds = build(runs, output)
        print(f"check_report: the report of {n} runs takes {seconds:.1f} s of the processor")
        assert seconds < LIMIT, f"more than {LIMIT:.0f} s"
        links = re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#)|url\(["']?(?!#)[^$]|@import|\bfetch\(""",
                           (output / "index.html").read_text())  # fmt: skip
        assert not links, f"the page refers to something else: {links}"
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            print("check_report: no Chromium found: the page is not opened (Debian: apt-get install chromium)")
            return
        for width in WIDTHS:
            check_outcome(operate(browser, output / "index.html", width), last_mean(output))
            print(f"check_report: curves, toggling and hovering work at {width} pixels")


if __name__ == "__main__":
    main()
