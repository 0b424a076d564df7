"""Labels in a real browser, with the keyboard alone, while run and server are killed: `make check`.

Three batches of a run are labeled in headless Chromium. The process is killed at random moments, five times in all, and
started again; the page goes on by itself. In the end the log has every answer once, and the run has these labels.
Then docs/label.md is executed from top to bottom (`--pictures FOLDER` saves what the page shows meanwhile), and large
photographs are labeled, for which the time from a key to the next image is measured on loopback.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from check_campaign import blocks, digit_names, read
from check_campaign import run as execute
from check_campaign import start as start_block
from chromium import Page, browser_page, find_chromium
from labeling_page import wait_for_link
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEYS = dict(zip(sorted(DIGITS), "123456789a", strict=True))
KILLS, BATCHES, PER_CYCLE, PHOTOS, DISTINCT = 5, 3, 20, 200, 20
SHOWN = (
    "!document.getElementById('single').hidden && document.querySelector('#stage img')?.complete"
    " && !page.busy && document.getElementById('path').textContent"
)
OVER = "Boolean(page.run?.end)"
# Measured in the page: from the key to the frame in which the next image, decoded, is shown.
MEASURE = """new Promise((resolve) => {
  const before = document.getElementById('path').textContent, start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key: '1', bubbles: true }));
  const look = () => {
    const image = document.querySelector('#stage img'), changed = document.getElementById('path').textContent !== before;
    if (changed && image?.complete && !page.busy) image.decode().then(() => requestAnimationFrame(() => resolve(performance.now() - start)));
    else if (!document.getElementById('waiting').hidden) resolve(null);
    else setTimeout(look, 1);
  };
  look();
})"""  # noqa: E501


class Run:
    """A run in a process group of its own, which can be killed and started again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.start()

    def start(self) -> None:
        """Starts the run or resumes it."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        common = ("dataset=image_folder", "oracle=browser", "tracker=none", "runtime.num_threads=1")
        command = [sys.executable, str(ROOT / "run.py"), *common, *self.arguments]
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, start_new_session=True, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """Kills the process with all its threads."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Kills the process if it still runs."""
        with suppress(ProcessLookupError):
            self.kill()


def write_digits(folder: Path) -> dict[str, str]:
    """Writes scans of digits, 40 of them labeled; returns the class of each by file name."""
    from sklearn.datasets import load_digits

    scans, truth = load_digits(), {}
    for n, (pixels, digit) in enumerate(zip(scans.images[:500], scans.target, strict=False)):
        part = "train" if n < 40 else "test" if n < 120 else "unlabeled"
        below = folder / "photos" / part / ("" if part == "unlabeled" else DIGITS[digit])
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).resize((64, 64)).save(below / f"scan{n:04}.png")
        truth[f"scan{n:04}.png"] = DIGITS[digit]
    return truth


def write_photos(folder: Path) -> None:
    """Writes photographs of 2,000 x 1,500 pixels: noise over waves, which JPEG compresses as little as a real one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1500, :2000]
    noise, files = rng.integers(0, 40, (1500, 2000, 3)), list[bytes]()
    for n in range(PHOTOS + 12):
        part = "unlabeled" if n < PHOTOS else f"test/{'ab'[n % 2]}" if n < PHOTOS + 8 else f"train/{'ab'[n % 2]}"
        below = folder / "photos" / part
        below.mkdir(parents=True, exist_ok=True)
        if n < DISTINCT:
            waves = 100 + 80 * np.sin(x / (20 + n) + y / 50)[..., None]
            buffer = io.BytesIO()
            Image.fromarray((waves + noise).astype(np.uint8)).save(buffer, "JPEG", quality=85)
            files.append(buffer.getvalue())
        (below / f"photo{n:04}.jpg").write_bytes(files[n % DISTINCT])


def enter(page: Page, link: str) -> None:
    """Opens the page and types a name."""
    page.open(link.strip())
    page.wait("document.getElementById('name-dialog').open")
    page.type("Ada")
    page.press("Enter")


def label_with_kills(page: Page, run: Run, truth: dict[str, str], rng: random.Random) -> int:
    """Labels until the run has finished, and kills it KILLS times; returns the number of keys that were answers."""
    kill_after = sorted(rng.sample(range(2, BATCHES * PER_CYCLE - 2), KILLS))  # answers
    keys = 0
    while run.process.poll() is None:
        if kill_after and keys >= kill_after[0]:
            kill_after.pop(0)
            if shown := page.evaluate(SHOWN):  # the key and the kill race
                page.press(KEYS[truth[Path(shown).name]])
                keys += 1
                time.sleep(rng.uniform(0, 0.03))
            run.kill()
            run.start()
            page.wait("page.lost === 0 && !page.busy", 180)
        shown = page.evaluate(f"({OVER}) ? '' : ({SHOWN}) || ''")
        if not shown:
            time.sleep(0.05)
            continue
        page.press(KEYS[truth[Path(shown).name]])
        keys += 1
        page.wait(after(shown), 180)
    return keys


def after(shown: str) -> str:
    """Returns an expression that is true once the page shows no longer this image."""
    other = f"!page.busy && document.getElementById('path').textContent !== {json.dumps(shown)}"
    return f"({OVER}) || {other} || document.getElementById('single').hidden"


def check_log(folder: Path, truth: dict[str, str]) -> int:
    """Checks that every answer is in the log and in the run exactly once; returns how many."""
    (labeling,) = folder.glob("outputs/**/labeling")
    answers = [json.loads(line) for line in (labeling / "answers.jsonl").read_text().splitlines()]
    assert len({answer["id"] for answer in answers}) == len(answers)
    assert len({answer["path"] for answer in answers}) == len(answers) == BATCHES * PER_CYCLE, len(answers)
    wrong = [answer for answer in answers if answer["label"] != truth[Path(answer["path"]).name]]
    assert not wrong, wrong
    rows = (labeling / "ledger.csv").read_text().splitlines()[1:]
    assert len(rows) == 40 + BATCHES * PER_CYCLE
    return len(answers)


def check_kills(browser: str) -> None:
    """Labels three batches with the keyboard while the run is killed."""
    start, rng = time.monotonic(), random.Random(0)
    with TemporaryDirectory(prefix="sslpl-labeling-") as name, browser_page(browser) as page:
        folder = Path(name)
        truth = write_digits(folder)
        size = (
            "dataset.root=photos",
            "dataset.channels=1",
            "dataset.resize=16",
            "dataset.size=16",
            "dataset.flip=false",
        )
        budget = (
            f"budget.per_cycle={PER_CYCLE}",
            f"budget.cycles={BATCHES + 1}",
            "training.epochs=4",
            "training.finetune_epochs=1",
        )
        run = Run(folder, *size, *budget, "oracle.port=8799")
        try:
            enter(page, wait_for_link(folder, 180))
            keys = label_with_kills(page, run, truth, rng)
            assert run.process.returncode == 0, (folder / "log.txt").read_text()[-2000:]
            page.wait(OVER, 20)
            answers = check_log(folder, truth)
            assert page.problems() == [], page.problems()
            assert {url.split("/")[2] for url in page.requested() if url.startswith("http")} == {"127.0.0.1:8799"}
        finally:
            run.end()
    seconds = time.monotonic() - start
    print(f"check_labeling: {keys} keys, {KILLS} kills, {answers} answers in the log, each once ({seconds:.0f} s)")


def check_page_of_docs(browser: str, pictures: Path | None) -> None:
    """Executes docs/label.md: labels its batches with the keyboard, and predicts the images that arrived meanwhile."""
    start, truth = time.monotonic(), digit_names()
    images, command, classifier = blocks("label.md")
    with TemporaryDirectory(prefix="sslpl-labeling-") as name, browser_page(browser) as page:
        folder = Path(name)
        shutil.copy(ROOT / "run.py", folder)
        execute(images._replace(shown=""), folder)
        process = start_block(command, folder)
        try:
            page.resize(1280, 860)
            enter(page, wait_for_link(folder, 180))
            keys, moments = 0, pictures_to_take(pictures)
            while process.poll() is None:
                shown = page.evaluate(f"({OVER}) ? '' : ({SHOWN}) || ''")
                if not shown:
                    time.sleep(0.05)
                    continue
                if moments and keys >= moments[0][0]:
                    moments.pop(0)[1](page)
                    continue  # the page may show another image now
                page.press(KEYS[truth[Path(shown).name]])
                keys += 1
                page.wait(after(shown), 180)
            assert process.returncode == 0, process.stdout and process.stdout.read()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        execute(classifier, folder)
        rows = read(folder / "predictions/predictions.csv")
        correct = sum(row["class"] == truth[row["path"]] for row in rows)
    print(f"check_labeling: docs/label.md, {keys} keys, {correct} of {len(rows)} new images correct "
          f"({time.monotonic() - start:.0f} s)")  # fmt: skip
    assert keys == 120
    assert correct > 0.7 * len(rows) == 0.7 * 97


def pictures_to_take(folder: Path | None) -> list[tuple[int, Callable[[Page], None]]]:
    """Returns after which numbers of answers pictures are taken."""
    return (
        []
        if folder is None
        else [(43, partial(take_pictures, folder=folder)), (90, partial(take_phone_picture, folder=folder))]
    )


def take_pictures(page: Page, folder: Path) -> None:
    """Saves the page with one image and with the grid."""
    page.screenshot(folder / "label_single.png")
    page.press("=")
    page.wait("!document.getElementById('grid').hidden && document.getElementById('grid-cards').childElementCount")
    page.wait("[...document.querySelectorAll('#grid-cards img')].every((image) => image.complete)")
    page.screenshot(folder / "label_grid.png")
    page.press("=")
    page.wait(SHOWN)


def take_phone_picture(page: Page, folder: Path) -> None:
    """Saves the page in the dark theme on a window of a phone's size."""
    page.evaluate("setTheme('dark')")
    page.resize(390, 780, phone=True)
    page.wait(SHOWN)
    page.screenshot(folder / "label_phone.png")
    page.resize(1280, 860)
    page.evaluate("setTheme('light')")


def check_speed(browser: str) -> None:
    """Labels large photographs and prints the time from each key to the next image."""
    with TemporaryDirectory(prefix="sslpl-labeling-") as name, browser_page(browser) as page:
        folder = Path(name)
        write_photos(folder)
        size = ("dataset.root=photos", "dataset.resize=16", "dataset.size=16", "method=random")
        budget = (f"budget.per_cycle={PHOTOS}", "budget.cycles=2", "budget.candidates=1.0", "training.epochs=1")
        run = Run(folder, *size, *budget, "oracle.port=0")
        try:
            enter(page, wait_for_link(folder, 180))
            page.wait(SHOWN, 180)
            page.wait("page.queue.slice(0, 5).every((record) => page.images.get(record.index)?.complete)")
            times = []
            while (milliseconds := page.evaluate(MEASURE)) is not None:
                times.append(milliseconds)
                time.sleep(0.3)  # nobody labels faster
        finally:
            run.end()
    slowest, median = max(times), float(np.median(times))
    print(
        f"check_labeling: {len(times) + 1} photographs, from key to next image {median:.0f} ms (median), "
        f"at most {slowest:.0f} ms"
    )
    assert len(times) == PHOTOS - 1


def main() -> None:
    """Exits with 0 if no answer is lost or doubled; without Chromium nothing is checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="only executes docs/label.md, with pictures")
    pictures: Path | None = parser.parse_args().pictures
    browser = find_chromium()
    if browser is None:
        print("check_labeling: no Chromium here, nothing is checked")
        return
    if pictures is None:
        check_kills(browser)
    check_page_of_docs(browser, pictures)
    if pictures is None:
        check_speed(browser)


if __name__ == "__main__":
    main()
