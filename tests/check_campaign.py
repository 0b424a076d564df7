"""Runs the campaign of docs/label_files.md with a program as the labeler: `make check`.

Each Python and Bash block of the page is executed in order in an empty folder; its output must contain the lines that
the page shows, apart from numbers. The labeler uses only the files of the run. One process of the run is killed during
its training, one receives a file with errors.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from studio import annotated, valid_tasks

ROOT = Path(__file__).resolve().parents[1]
KNOWN, LIMIT = 60, 600.0  # images of train/; maximum seconds of a command
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Rows = list[dict[str, str]]


class Block(NamedTuple):
    """A command of the page and the output that the page shows."""

    language: str
    code: str
    shown: str


def blocks(page: str) -> list[Block]:
    """Returns the Python and Bash blocks of a page."""
    text = (ROOT / "docs" / page).read_text()
    found = [(m[1], m[2]) for m in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]
    after = [code if language == "text" else "" for language, code in [*found[1:], ("", "")]]
    return [Block(*each, shown) for each, shown in zip(found, after, strict=True) if each[0] in ("python", "bash")]


def start(block: Block, folder: Path) -> subprocess.Popen[str]:
    """Starts a block in a process group of its own."""
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*program, block.code], cwd=folder, env=environment, start_new_session=True, **pipes)


def run(block: Block, folder: Path, code: int = 0) -> str:
    """Executes a block, which must exit with `code` and print what the page shows; returns its output."""
    process = start(block, folder)
    log, _ = process.communicate(timeout=LIMIT)
    first = block.code.splitlines()[0]
    assert process.returncode == code, f"{first}: ended with {process.returncode}\n{log}"
    printed = {without_numbers(line) for line in log.splitlines()}
    missing = [line for line in block.shown.splitlines() if without_numbers(line) not in printed]
    assert not missing, f"{first}: did not print {missing}\n{log}"
    return log


def without_numbers(line: str) -> str:
    """Replaces the numbers and run ids of a line, which differ between machines."""
    return re.sub(r"\d+", "0", re.sub(r"seed0-([0-9a-f]+|<id>)", "seed0-*", line))


def run_and_kill(block: Block, folder: Path) -> None:
    """Executes a block and kills it once it trains."""
    process = start(block, folder)
    while '"train"' not in (status := (find_run(folder) / "status.json").read_text()) or '"running"' not in status:
        assert process.poll() is None, f"ended before it could be killed: {process.stdout and process.stdout.read()}"
        time.sleep(0.002)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status = (find_run(folder) / "status.json").read_text()
    assert '"train"' in status, f"was killed too late: {status}"
    assert '"running"' in status, f"was killed too late: {status}"


def find_run(folder: Path) -> Path:
    """Returns the folder of the only run."""
    (run_folder,) = folder.glob("outputs/image_folder/sslpm/seed0-*")
    return run_folder


def read(path: Path) -> Rows:
    """Reads the rows of a table."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


class Labeler:
    """A simulated labeler: labels each requested batch and records all labels and files that it wrote."""

    def __init__(self, truth: dict[str, str]) -> None:
        self.truth = truth
        self.labeled: dict[str, tuple[str, str, str]] = {}  # by path: cycle, class, file
        self.written: dict[Path, bytes] = {}

    def label(self, folder: Path, cycle: int, write: Callable[[Path, dict[str, str]], Path]) -> None:
        """Labels a requested batch by writing a file."""
        batch = find_run(folder) / "labeling" / f"cycle{cycle}"
        rows = read(batch / "to_label.csv")
        assert all(row["label"] == "" and row["predicted"] in NAMES and row["reason"] for row in rows)
        assert (batch / "contact_sheet.png").stat().st_size > 1000
        labels = {row["path"]: self.truth[Path(row["path"]).name] for row in rows}
        assert len(labels) == 40
        assert not labels.keys() & self.labeled.keys(), "an image was requested twice"
        file = write(batch, labels)
        self.written[file] = file.read_bytes()
        self.labeled |= {
            path: (str(cycle), label, f"labeling/{batch.name}/{file.name}") for path, label in labels.items()
        }


def write_table(batch: Path, labels: dict[str, str]) -> Path:
    """Writes a table as a spreadsheet saves it, with its rows in another order."""
    rows = [row | {"label": labels[row["path"]]} for row in read(batch / "to_label.csv") if row["path"] in labels]
    with (batch / "labels.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["predicted"]))
    return batch / "labels.csv"


def write_invalid_table(batch: Path, labels: dict[str, str]) -> Path:
    """Writes a table with a misspelled class in its first row and without its last row."""
    write_table(batch, labels)
    head, first, *lines = (batch / "labels.csv").read_text("utf-8-sig").splitlines()
    path, _, *rest = first.split(";")
    (batch / "labels.csv").write_text("\n".join([head, ";".join([path, "sevem", *rest]), *lines[:-1]]))
    return batch / "labels.csv"


def write_export(batch: Path, labels: dict[str, str]) -> Path:
    """Writes the export of Label Studio after its tasks were imported and annotated."""
    names = [element.split('"')[1] for element in (batch / "label_studio.xml").read_text().split("<Choice ")[1:]]
    tasks = valid_tasks((batch / "label_studio.json").read_text(), (batch / "label_studio.xml").read_text(), names)
    assert all((batch.parents[5] / "photos" / task["data"]["image"].split("?d=")[1]).is_file() for task in tasks)
    exported = [annotated(task, labels[task["data"]["path"]]) for task in reversed(tasks)]
    (batch / "label_studio_export.json").write_text(json.dumps(exported))
    return batch / "label_studio_export.json"


def write_partial_table(batch: Path, labels: dict[str, str]) -> Path:
    """Writes a table of 30 images, one of them of a new class."""
    for path in [*labels][30:]:
        del labels[path]
    labels[next(iter(labels))] = "smudge"
    return write_table(batch, labels)


def main() -> None:
    """Exits with 0 if the page is correct and the run has exactly the labels that were given."""
    start_time, page = time.monotonic(), blocks("label_files.md")
    images, command, received, invalid, corrected, studio, last, progress, new = page
    with TemporaryDirectory(prefix="sslpl-campaign-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "run.py", folder)
        run(images._replace(shown=""), folder)
        labeler = Labeler(digit_names())
        run(command, folder)
        labeler.label(folder, 1, write_table)
        run_and_kill(received, folder)
        assert "resumed at cycle 2, train" in run(received._replace(shown=""), folder)
        check_refusal(labeler, invalid, folder)
        run(corrected._replace(shown=received.shown), folder)
        labeler.label(folder, 3, write_export)
        run(studio, folder)
        labeler.label(folder, 4, write_partial_table)
        run(last, folder)
        assert '"finished"' in run(progress, folder)
        run(new, folder)
        check_complete(labeler, folder)
        check_accuracy(labeler, folder)
    seconds = time.monotonic() - start_time
    print(f"check_campaign: {len(page)} blocks, {len(labeler.labeled)} labels, all of them kept ({seconds:.0f} s)")


def digit_names() -> dict[str, str]:
    """Returns the class of each scan by file name."""
    from sklearn.datasets import load_digits

    return {f"scan{n:04}.png": NAMES[digit] for n, digit in enumerate(load_digits().target)}


def check_refusal(labeler: Labeler, block: Block, folder: Path) -> None:
    """Checks that a file with errors exits with 2, prints a line per error and changes nothing; then corrects it."""
    batch, before = find_run(folder) / "labeling" / "cycle2", run_files(folder)
    invalid_labeler = Labeler(labeler.truth)
    invalid_labeler.label(folder, 2, write_invalid_table)
    log = run(block, folder, code=2)
    assert log.count("sslpl: outputs") == log.count("labels.csv") == 2, log
    assert invalid_labeler.written == {batch / "labels.csv": (batch / "labels.csv").read_bytes()}, (
        "the file was changed"
    )
    assert run_files(folder) == before, "something was changed"
    labeler.label(folder, 2, write_table)


def run_files(folder: Path) -> dict[str, bytes]:
    """Reads all files of the run except requests, labels and the files that describe the process."""
    files = [
        path for path in find_run(folder).rglob("*") if path.is_file() and not path.parent.name.startswith("cycle")
    ]
    own = (".lock", "provenance.json", "metrics.csv")  # versions, and memory of the process
    return {str(path): path.read_bytes() for path in files if path.name not in own}


def check_complete(labeler: Labeler, folder: Path) -> None:
    """Checks that the ledger and queries.csv hold exactly the given labels, and the labeler's files are unchanged."""
    run_folder = find_run(folder)
    assert all(path.read_bytes() == content for path, content in labeler.written.items())
    ledger, queries = read(run_folder / "labeling/ledger.csv"), read(run_folder / "queries.csv")
    recorded = {row["path"]: (row["cycle"], row["class"], row["source"]) for row in ledger}
    initial = {path.relative_to(folder / "photos").as_posix() for path in folder.glob("photos/train/*/*")}
    assert len(ledger) == len(recorded) == KNOWN + 40 + 40 + 40 + 30
    assert recorded == labeler.labeled | {path: ("0", path.split("/")[1], "dataset") for path in initial}
    assert all(bool(row["time"]) == (row["source"] != "dataset") for row in ledger)
    pool = sorted(path.relative_to(folder / "photos").as_posix() for path in folder.glob("photos/*/**/*.png"))
    pool = [path for path in pool if not path.startswith("test/")]
    classes = [row["class"] for row in read(run_folder / "labeling/classes.csv")]
    assert classes == [*sorted(NAMES), "smudge"]
    filed = [(row["cycle"], pool[int(row["index"])], classes[int(row["label"])]) for row in queries]
    assert filed == [(row["cycle"], row["path"], row["class"]) for row in ledger]


def check_accuracy(labeler: Labeler, folder: Path) -> None:
    """Checks the metrics of each cycle, the predictions of all new images, and the report."""
    rows = read(find_run(folder) / "metrics.csv")
    assert [int(row["labeled"]) for row in rows] == [60, 100, 140, 180, 210]
    assert all(row["loss_rank_correlation"] == row["pseudo_label_accuracy"] == "" for row in rows)
    scores = [float(row["test_accuracy"]) for row in rows]
    predicted = read(folder / "predictions/predictions.csv")
    correct = [row["class"] == labeler.truth[row["path"]] for row in predicted]
    assert len(correct) == len([*folder.glob("new/*")]) == 97
    print(f"check_campaign: test accuracy {scores}, {sum(correct)} of {len(correct)} new images correct")
    assert scores[-1] > max(0.8, scores[0])
    assert sum(correct) > 0.7 * len(correct)
    assert (folder / "predictions/model.onnx").stat().st_size > 1000
    assert "Test accuracy" in (folder / "report/index.html").read_text()
    assert (find_run(folder) / "learning_curve.png").is_file()


if __name__ == "__main__":
    main()
