"""Labels in the real Label Studio, while the server and the run are killed: `make check`.

Its package is installed into an environment of its own, and its server started on loopback. Three batches of a run are
labeled over the REST API, as its page does, and one image on the page itself if there is a Chromium; the server is
restarted in the second batch, and in the third the run is killed and resumed with the other kind of token. In the end
every image has one task and one answer, and the run has these labels. The time from the last label to the next batch is
measured, without that of the training.

`python tests/check_label_studio.py FOLDER` uses the environment in a folder, which is made if it is not there.
"""

import csv
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from check_labeling import write_digits
from chromium import browser_page, find_chromium
from label_studio_person import Person, choice

ROOT = Path(__file__).resolve().parents[1]
BATCHES, PER_CYCLE = 3, 8
LONGEST = 10.0  # seconds from the last label to the next batch, training aside
EMAIL = "ada@example.org"
PHASES = ("train_seconds", "finetune_seconds", "evaluate_seconds", "query_seconds")


class Skipped(Exception):
    """Raised if the server's package cannot be installed here."""


def installed(environment: Path) -> Path:
    """Returns the server's command in an environment, into which it is installed if it is not there."""
    command = environment / "bin" / "label-studio"
    if not command.exists():
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "label-studio"]
        for step in ([sys.executable, "-m", "venv", str(environment)], pip):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode != 0:
                raise Skipped((done.stderr.strip() or "no reason given").splitlines()[-1])
    return command


class Server:
    """A Label Studio with one account, which can be killed and started again."""

    def __init__(self, command: Path, folder: Path) -> None:
        self.command, self.folder = command, folder
        self.token, self.password = secrets.token_hex(20), secrets.token_hex(8)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        account = ("--username", EMAIL, "--password", self.password, "--user-token", self.token)
        options = (
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--enable-legacy-api-token",
        )
        environment = os.environ | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                [self.command, "start", *options, *account],
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        raise RuntimeError((self.folder / "log.txt").read_text()[-2000:])

    def kill(self) -> None:
        """Kills the server with all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Run:
    """A run that asks the server, which can be killed and started again."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.start(server.token)

    def start(self, token: str) -> None:
        """Starts the run or resumes it."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LABEL_STUDIO_API_KEY": token}
        images = ("root=photos", "channels=1", "resize=16", "size=16", "flip=false")
        arguments = (
            *("dataset=image_folder", *(f"dataset.{option}" for option in images)),
            *("oracle=label_studio", f"oracle.url={self.server.url}", "tracker=none", "runtime.num_threads=1"),
            *(f"budget.per_cycle={PER_CYCLE}", f"budget.cycles={BATCHES + 1}"),
            *("training.epochs=2", "training.finetune_epochs=1"),
        )
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "run.py"), *arguments],
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kills the run."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def has_ended(self) -> bool:
        """True if the process has ended."""
        return self.process.poll() is not None

    def log(self) -> str:
        """Returns what the run has printed."""
        return (self.folder / "log.txt").read_text()

    def labeling(self) -> Path:
        """Returns the folder of its labels."""
        (found,) = self.folder.glob("outputs/**/labeling")
        return found

    def project(self, seconds: float = 120) -> int:
        """Returns the number of its project as soon as it has one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for file in self.folder.glob("outputs/**/labeling/label_studio.json"):
                if number := json.loads(file.read_text())["project"]:
                    return int(number)
            assert not self.has_ended(), self.log()[-2000:]
            time.sleep(0.1)
        raise AssertionError(self.log()[-2000:])

    def phase_seconds(self) -> float:
        """Returns the time that the phases of the last cycle took, without labeling."""
        with (self.labeling().parent / "metrics.csv").open(newline="") as file:
            *_, row = csv.DictReader(file)
        return sum(float(row[phase] or 0) for phase in PHASES)


def personal_access_token(person: Person) -> str:
    """Returns a new token of the other kind."""
    return str(person.request("POST", "api/token/")["token"])


def accept_guess(browser: str, server: Server, link: str, is_done: Callable[[], bool]) -> None:
    """Logs in, opens the labeling page and submits what it shows, an image with the model's guess."""
    submit = "[...document.querySelectorAll('button')].find((button) => button.innerText.trim() === 'Submit')"
    with browser_page(browser) as page:
        page.resize(1300, 900)
        page.open(f"{server.url}/user/login/")
        for field, text in (("email", EMAIL), ("password", server.password)):
            page.evaluate(f"document.getElementById('{field}').focus()")
            page.type(text)
        page.press("Enter")
        page.wait("!location.pathname.includes('login') && document.readyState === 'complete'")
        page.open(link)
        page.wait(f"Boolean({submit}) && Boolean(document.querySelector('input:checked'))", 120)
        page.evaluate(f"{submit}.click()")
        end = time.monotonic() + 60
        while not is_done():
            assert time.monotonic() < end, "the page has submitted nothing"
            time.sleep(0.2)


def label_on_page(browser: str, server: Server, person: Person, project: int, truth: dict[str, str]) -> None:
    """Labels one image on the page of the server with the model's guess, which counts as its true class."""
    asked = {task["id"] for task in person.open_tasks(project)}

    def labeled() -> list[dict[str, Any]]:
        return [task for task in person.tasks(project) if task["id"] in asked and task["annotations"]]

    accept_guess(browser, server, f"{server.url}/projects/{project}/data?labeling=1", lambda: bool(labeled()))
    (task,) = labeled()
    (guess,) = task["predictions"][0]["result"][0]["value"]["choices"]
    truth[Path(task["data"]["path"]).name] = guess


def label_batches(run: Run, server: Server, person: Person, truth: dict[str, str]) -> list[float]:
    """Labels all batches; returns the seconds from the last label of each to the next batch, without the training."""
    project, seconds, labeled = run.project(), list[float](), 0.0
    for batch in range(BATCHES):
        tasks = person.wait_for_tasks(project, PER_CYCLE, 240, run.has_ended)
        if batch > 0:
            seconds.append(time.monotonic() - labeled - run.phase_seconds())
        if batch == 1 and (browser := find_chromium()) is not None:
            label_on_page(browser, server, person, project, truth)
            tasks = person.open_tasks(project)
        for number, task in enumerate(tasks):
            if (batch, number) == (1, 2):
                server.kill()
                server.start()
            if (batch, number) == (2, 3):
                run.kill()
                run.start(personal_access_token(person))
            assert task["predictions"][0]["result"][0]["from_name"] == "label"
            person.annotate(task, choice(truth[Path(task["data"]["path"]).name]))
        labeled = time.monotonic()
    return seconds


def check_end(run: Run, server: Server, person: Person, truth: dict[str, str]) -> None:
    """Checks that every image has one task, one answer and its label, and that no token was written."""
    tasks, answers_file = person.tasks(run.project()), run.labeling() / "answers.jsonl"
    paths = [task["data"]["path"] for task in tasks]
    assert len({*paths}) == len(paths) == BATCHES * PER_CYCLE, len(paths)
    answers = [json.loads(line) for line in answers_file.read_text().splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(paths), len(answers)
    assert {answer["person"] for answer in answers} == {EMAIL}
    with (run.labeling() / "ledger.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] != "dataset"]
    assert {row["path"]: row["class"] for row in rows} == {path: truth[Path(path).name] for path in paths}
    picture = requests.get(
        server.url + tasks[0]["data"]["image"], headers={"Authorization": f"Token {server.token}"}, timeout=60
    )
    assert picture.content == (run.folder / "photos" / paths[0]).read_bytes()
    for file in run.folder.rglob("*"):
        assert not file.is_file() or server.token.encode() not in file.read_bytes(), file


def main() -> None:
    """Exits with 0 if no answer is lost or doubled and no batch is late; without the package nothing is checked."""
    start = time.monotonic()
    with TemporaryDirectory(prefix="sslpl-label-studio-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            command = installed(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "environment")
        except Skipped as error:
            print(f"check_label_studio: label-studio cannot be installed here, nothing is checked ({error})")
            return
        install_seconds = time.monotonic() - start
        truth = write_digits(folder / "run")
        server = Server(command, folder / "server")
        try:
            run = Run(folder / "run", server)
            try:
                person = Person(server.url, server.token)
                seconds = label_batches(run, server, person, truth)
                assert run.process.wait(timeout=120) == 0, run.log()[-2000:]
                check_end(run, server, person, truth)
                assert "Label Studio answers again" in run.log()
            except BaseException:
                print(run.log()[-3000:])
                raise
            finally:
                run.kill()
        finally:
            server.kill()
    longest = max(seconds)
    assert longest <= LONGEST, f"{longest:.1f} s from the last label to the next batch"
    print(
        f"check_label_studio: {BATCHES} batches of {PER_CYCLE} labeled, server and run killed, each answer once; next "
        f"batch at most {longest:.1f} s after the last label, training aside "
        f"({time.monotonic() - start:.0f} s, {install_seconds:.0f} s of them for the installation)"
    )


if __name__ == "__main__":
    main()
