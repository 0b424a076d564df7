"""Runs the campaign of docs/campaign.md, a program in the place of the person who labels: `make check`.

Each block of Python and Bash on the page is executed, in order, in an empty folder; what the page shows of a command's
output is looked for there, numbers aside. The labeler knows the run by its files alone. One life of the run is killed
in the middle of its training, one is given a file with mistakes.
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
KNOWN, LIMIT = 60, 600.0  # images of train/; seconds that a command may take, on a machine that is not idle
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Rows = list[dict[str, str]]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    log: str


class Block(NamedTuple):
    """A command of the page, and what the page shows of its output."""

    language: str
    code: str
    shown: str


def blocks() -> list[Block]:
    """What the page has its reader execute."""
    text = (ROOT / "docs/campaign.md").read_text()
    found = [(m[1], m[2]) for m in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]
    after = [code if language == "text" else "" for language, code in [*found[1:], ("", "")]]
    return [Block(*each, shown) for each, shown in zip(found, after, strict=True) if each[0] in ("python", "bash")]


def started(block: Block, folder: Path) -> subprocess.Popen[str]:
    """A process of its own, in a group of its own."""
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*program, block.code], cwd=folder, env=environment, start_new_session=True, **pipes)


def run(block: Block, folder: Path, code: int = 0) -> str:
    """Executes a block, which must end as expected and print what the page shows; its output."""
    process = started(block, folder)
    log, _ = process.communicate(timeout=LIMIT)
    first = block.code.splitlines()[0]
    assert process.returncode == code, f"{first}: ended with {process.returncode}\n{log}"
    printed = {plain(line) for line in log.splitlines()}
    missing = [line for line in block.shown.splitlines() if plain(line) not in printed]
    assert not missing, f"{first}: did not print {missing}\n{log}"
    return log


def plain(line: str) -> str:
    """A line without what differs from one computer to the next."""
    return re.sub(r"\d+", "0", re.sub(r"seed0-[0-9a-f]+", "seed0-*", line))


def killed(block: Block, folder: Path) -> None:
    """Executes a block and kills it as soon as it trains."""
    process = started(block, folder)
    while '"train"' not in (status := (campaign(folder) / "status.json").read_text()) or '"running"' not in status:
        assert process.poll() is None, f"ended before it could be killed: {process.stdout and process.stdout.read()}"
        time.sleep(0.002)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status = (campaign(folder) / "status.json").read_text()
    assert '"train"' in status, f"was killed too late: {status}"
    assert '"running"' in status, f"was killed too late: {status}"


def campaign(folder: Path) -> Path:
    """The folder of the run, the only one."""
    (run_folder,) = folder.glob("outputs/image_folder/sslpm/seed0-*")
    return run_folder


def read(path: Path) -> Rows:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


class Labeler:
    """Reads what is asked, knows the digits, writes what it tells; remembers all of it."""

    def __init__(self, truth: dict[str, str]) -> None:
        self.truth = truth
        self.told: dict[str, tuple[str, str, str]] = {}  # by path: cycle, class, file
        self.written: dict[Path, bytes] = {}

    def label(self, folder: Path, cycle: int, write: Callable[[Path, dict[str, str]], Path]) -> None:
        """Answers a batch by a file."""
        batch = campaign(folder) / "labeling" / f"cycle{cycle}"
        rows = read(batch / "to_label.csv")
        assert all(row["label"] == "" and row["predicted"] in NAMES and row["reason"] for row in rows)
        assert (batch / "contact_sheet.png").stat().st_size > 1000
        labels = {row["path"]: self.truth[Path(row["path"]).name] for row in rows}
        assert len(labels) == 40
        assert not labels.keys() & self.told.keys(), "asked twice"
        file = write(batch, labels)
        self.written[file] = file.read_bytes()
        self.told |= {path: (str(cycle), label, f"labeling/{batch.name}/{file.name}") for path, label in labels.items()}


def table(batch: Path, labels: dict[str, str]) -> Path:
    """A table as a spreadsheet saves it, in an order of its own."""
    rows = [row | {"label": labels[row["path"]]} for row in read(batch / "to_label.csv") if row["path"] in labels]
    with (batch / "labels.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["predicted"]))
    return batch / "labels.csv"


def with_mistakes(batch: Path, labels: dict[str, str]) -> Path:
    """A table with a misspelled class in its first row and without its last."""
    table(batch, labels)
    head, first, *lines = (batch / "labels.csv").read_text("utf-8-sig").splitlines()
    path, _, *rest = first.split(";")
    (batch / "labels.csv").write_text("\n".join([head, ";".join([path, "sevem", *rest]), *lines[:-1]]))
    return batch / "labels.csv"


def export(batch: Path, labels: dict[str, str]) -> Path:
    """What Label Studio exports when the tasks have been imported and annotated."""
    names = [element.split('"')[1] for element in (batch / "label_studio.xml").read_text().split("<Choice ")[1:]]
    tasks = valid_tasks((batch / "label_studio.json").read_text(), (batch / "label_studio.xml").read_text(), names)
    assert all((batch.parents[5] / "photos" / task["data"]["image"].split("?d=")[1]).is_file() for task in tasks)
    said = [annotated(task, labels[task["data"]["path"]]) for task in reversed(tasks)]
    (batch / "label_studio_export.json").write_text(json.dumps(said))
    return batch / "label_studio_export.json"


def a_part(batch: Path, labels: dict[str, str]) -> Path:
    """A table of 30 images, one of them of a class that was not known."""
    for path in [*labels][30:]:
        del labels[path]
    labels[next(iter(labels))] = "smudge"
    return table(batch, labels)


def main() -> None:
    """Ends with exit code 0 if the page is right and no label was lost or made up."""
    began, page = time.monotonic(), blocks()
    images, command, received, mistaken, mended, studio, last, progress, new = page
    with TemporaryDirectory(prefix="sslpl-campaign-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "run.py", folder)
        run(images._replace(shown=""), folder)
        labeler = Labeler(digits())
        run(command, folder)
        labeler.label(folder, 1, table)
        killed(received, folder)
        assert "resumed at cycle 2, train" in run(received._replace(shown=""), folder)
        refused(labeler, mistaken, folder)
        run(mended._replace(shown=received.shown), folder)
        labeler.label(folder, 3, export)
        run(studio, folder)
        labeler.label(folder, 4, a_part)
        run(last, folder)
        assert '"finished"' in run(progress, folder)
        run(new, folder)
        complete(labeler, folder)
        accurate(labeler, folder)
    spent = time.monotonic() - began
    print(f"check_campaign: {len(page)} blocks, {len(labeler.told)} labels, all of them kept ({spent:.0f} s)")


def digits() -> dict[str, str]:
    """What each scan shows, by the name of its file."""
    from sklearn.datasets import load_digits

    return {f"scan{n:04}.png": NAMES[digit] for n, digit in enumerate(load_digits().target)}


def refused(labeler: Labeler, block: Block, folder: Path) -> None:
    """A file with mistakes: exit code 2, a line for each, and nothing has changed; then it is mended."""
    batch, before = campaign(folder) / "labeling" / "cycle2", state(folder)
    careless = Labeler(labeler.truth)
    careless.label(folder, 2, with_mistakes)
    log = run(block, folder, code=2)
    assert log.count("sslpl: outputs") == log.count("labels.csv") == 2, log
    assert careless.written == {batch / "labels.csv": (batch / "labels.csv").read_bytes()}, "the file was changed"
    assert state(folder) == before, "something was changed"
    labeler.label(folder, 2, table)


def state(folder: Path) -> dict[str, bytes]:
    """All that the run has written, but for what is asked and answered, and what tells of the process itself."""
    files = [
        path for path in campaign(folder).rglob("*") if path.is_file() and not path.parent.name.startswith("cycle")
    ]
    own = (".lock", "provenance.json", "metrics.csv")  # versions, and memory of the process
    return {str(path): path.read_bytes() for path in files if path.name not in own}


def complete(labeler: Labeler, folder: Path) -> None:
    """The ledger and queries.csv hold every label that was told, and no other; no file of the labeler has changed."""
    run_folder = campaign(folder)
    assert all(path.read_bytes() == content for path, content in labeler.written.items())
    ledger, queries = read(run_folder / "labeling/ledger.csv"), read(run_folder / "queries.csv")
    told = {row["path"]: (row["cycle"], row["class"], row["source"]) for row in ledger}
    begun = {path.relative_to(folder / "photos").as_posix() for path in folder.glob("photos/train/*/*")}
    assert len(ledger) == len(told) == KNOWN + 40 + 40 + 40 + 30
    assert told == labeler.told | {path: ("0", path.split("/")[1], "dataset") for path in begun}
    assert all(bool(row["time"]) == (row["source"] != "dataset") for row in ledger)
    pool = sorted(path.relative_to(folder / "photos").as_posix() for path in folder.glob("photos/*/**/*.png"))
    pool = [path for path in pool if not path.startswith("test/")]
    classes = [row["class"] for row in read(run_folder / "labeling/classes.csv")]
    assert classes == [*sorted(NAMES), "smudge"]
    filed = [(row["cycle"], pool[int(row["index"])], classes[int(row["label"])]) for row in queries]
    assert filed == [(row["cycle"], row["path"], row["class"]) for row in ledger]


def accurate(labeler: Labeler, folder: Path) -> None:
    """Metrics of each cycle without what nobody can know; predictions for all new images, mostly right; a report."""
    rows = read(campaign(folder) / "metrics.csv")
    assert [int(row["labeled"]) for row in rows] == [60, 100, 140, 180, 210]
    assert all(row["loss_rank_correlation"] == row["pseudo_label_accuracy"] == "" for row in rows)
    scores = [float(row["test_accuracy"]) for row in rows]
    predicted = read(folder / "predictions/predictions.csv")
    right = [row["class"] == labeler.truth[row["path"]] for row in predicted]
    assert len(right) == len([*folder.glob("new/*")]) == 97
    print(f"check_campaign: test accuracy {scores}, {sum(right)} of {len(right)} new images right")
    assert scores[-1] > max(0.8, scores[0])
    assert sum(right) > 0.7 * len(right)
    assert (folder / "predictions/model.onnx").stat().st_size > 1000
    assert "Test accuracy" in (folder / "report/index.html").read_text()
    assert (campaign(folder) / "learning_curve.png").is_file()


if __name__ == "__main__":
    main()
