"""A run that asks a running Label Studio: tasks and answers are neither lost nor doubled, its errors are waited out."""

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Killed, Result, run_folder
from fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio, answer_directly, serving
from label_studio_person import Person, choice, new_class
from PIL import Image
from requests.adapters import HTTPAdapter
from test_oracle import FILES, NAMES, QUICK, photos, read, truth

from sslpl.config.identity import scientific_config
from sslpl.oracle import LabelStudioOracle, label_studio_client, label_studio_oracle, label_studio_project
from sslpl.oracle import label_studio_session as session
from sslpl.oracle.answer_log import LOG, read_answers
from sslpl.oracle.label_studio_answers import reply, version_id
from sslpl.oracle.label_studio_client import Client, LabelStudioError
from sslpl.oracle.label_studio_project import (
    REJECT,
    REJECT_CHOICE,
    choices_of,
    extended_interface,
    is_usable,
    live_interface,
    superfluous,
)
from sslpl.recording import recorder
from sslpl.types import Dataset, LabelAnswer, LabelRequest, RunProgress, Selection, UserError

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
STUDIO = (FILES[0], "oracle=label_studio", "method=entropy", "budget.cycles=2")
PROGRESS = RunProgress("label", 0, 3, 0, None, ())


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: Patch) -> None:
    """Sets the token, waits for nothing, and disables plots, which are tested elsewhere."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setattr(
        session, "time", SimpleNamespace(monotonic=itertools.count().__next__)
    )  # each step takes a second
    monkeypatch.setattr(session, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(session, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(label_studio_oracle, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "learning_curve", lambda *_: None)


@pytest.fixture
def server() -> Iterator[FakeLabelStudio]:
    """A server on loopback."""
    state = FakeLabelStudio()
    with serving(state):
        yield state


@pytest.fixture
def studio(monkeypatch: Patch) -> FakeLabelStudio:
    """A server that is reached without connections, which would take most of the time."""
    state = FakeLabelStudio()
    monkeypatch.setattr(HTTPAdapter, "send", lambda _, request, **__: answer_directly(state, request))
    return state


@pytest.fixture
def person(studio: FakeLabelStudio) -> Person:
    return Person(studio.url, LEGACY)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return photos()


class Life:
    """One process of a run, from its start to its end."""

    def __init__(self, oracle: LabelStudioOracle, dataset: Dataset, folder: Path, lines: list[str]) -> None:
        self.oracle, self.dataset, self.folder, self.lines = oracle, dataset, folder, lines

    @property
    def project(self) -> int:
        return int(json.loads((self.folder / "labeling" / "label_studio.json").read_text())["project"])

    def ask(
        self, index: list[int], cycle: int = 1, classes: tuple[str, ...] = NAMES, times: int = 12
    ) -> LabelAnswer | None:
        """Asks for the labels of images until they are there, some times at most."""
        selection = Selection(torch.tensor(index), torch.zeros(len(index)))
        guess = torch.eye(10)[[3] * len(index)] * 0.8
        request = LabelRequest(self.dataset, self.folder, cycle, selection, "", classes, lambda: guess)
        answers = (self.oracle(request) for _ in range(times))
        return next((answer for answer in answers if answer is not None), None)


@contextmanager
def life(server: FakeLabelStudio, dataset: Dataset, folder: Path, **options: Any) -> Iterator[Life]:
    oracle, lines = LabelStudioOracle(url=server.url, **options), list[str]()
    with oracle.serve(oracle.prepare(dataset), folder, lines.append, lambda: PROGRESS):
        yield Life(oracle, dataset, folder, lines)


def label_until(person: Person, folder: Path, ended: Callable[[], bool]) -> int:
    """Labels every task of the run's project until it has ended; returns how many."""
    count = 0
    while not ended():
        for file in folder.glob("**/labeling/label_studio.json"):
            if number := json.loads(file.read_text())["project"]:
                for task in person.open_tasks(number):
                    person.annotate(task, choice(truth(task["data"]["path"])))
                    count += 1
        time.sleep(0.05)
    return count


# A run


def test_a_run_goes_on_as_people_label(sslpl: Command, server: FakeLabelStudio) -> None:
    with ThreadPoolExecutor(1) as threads:
        over = list[bool]()
        count = threads.submit(label_until, Person(server.url, LEGACY), Path("outputs"), lambda: bool(over))
        done = sslpl(*QUICK, *STUDIO, f"oracle.url={server.url}")
        over.append(True)
    assert done.code == 0, done.err
    assert count.result() == len(server.tasks) == len(server.uploads) == 24 + 8
    labeling = run_folder() / "labeling"
    answers, _ = read_answers(labeling / LOG)
    assert len({answer.path for answer in answers}) == len(answers) == 24 + 8
    assert {(answer.person, answer.seconds) for answer in answers} == {("ada@example.org", 1.5)}
    assert [bool(answer.guess) for answer in answers] == [False] * 24 + [True] * 8
    recorded = {row["path"]: row["class"] for row in read(labeling / "ledger.csv")}
    assert recorded == {answer.path: answer.label for answer in answers}
    assert all(label == truth(path) for path, label in recorded.items())
    assert not any(LEGACY in file.read_text("latin-1") for file in run_folder().rglob("*") if file.is_file())


def test_the_run_ends_when_the_seconds_of_labeling_are_spent(sslpl: Command, server: FakeLabelStudio) -> None:
    with ThreadPoolExecutor(1) as threads:
        over = list[bool]()
        threads.submit(label_until, Person(server.url, LEGACY), Path("outputs"), lambda: bool(over))
        done = sslpl(*QUICK, *STUDIO, f"oracle.url={server.url}", "budget.cycles=4", "budget.seconds=50")
        over.append(True)
    assert done.code == 0, done.err
    rows = read(run_folder() / "metrics.csv")
    assert [float(row["labeling_seconds"]) for row in rows] == [36.0, 48.0]  # 1.5 s a label: 60 s are too many


def test_tasks_have_the_image_its_path_and_the_guess(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2]) is None
        assert choices_of(studio.projects[run.project]["label_config"]) == list(NAMES)
        assert studio.projects[run.project]["show_collab_predictions"]
    first, second = person.tasks(run.project)
    assert [first["data"]["path"], second["data"]["path"]] == ["unlabeled/scan 005.png", "unlabeled/scan 002.png"]
    assert first["predictions"][0]["score"] == 0.8
    assert first["predictions"][0]["result"][0]["value"] == {"choices": ["three"]}
    uploaded = {f"/data/{file}": content for file, content in studio.uploads}
    assert uploaded[first["data"]["image"]].startswith(b"\x89PNG")
    assert uploaded[first["data"]["image"]] != uploaded[second["data"]["image"]]


def test_image_files_are_uploaded_as_they_are(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "b.tiff")  # which no browser shows
    files = tuple(str(tmp_path / name) for name in ("a.png", "b.tiff"))
    with life(studio, dataset._replace(files=files), tmp_path) as run:
        assert run.ask([0, 1]) is None
    (first, content), (second, converted) = studio.uploads
    assert content == (tmp_path / "a.png").read_bytes()
    assert (Path(first).suffix, Path(second).suffix, converted[:2]) == (".png", ".jpeg", b"\xff\xd8")


def test_local_files_are_not_uploaded(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path, images="local_files") as run:
        run.ask([5])
    assert not studio.uploads
    assert person.tasks(run.project)[0]["data"]["image"] == "/data/local-files/?d=unlabeled/scan%20005.png"


# Nothing is lost


@contextmanager
def killed(monkeypatch: Patch, number: int, answered: bool) -> Iterator[None]:
    """Kills the run at a request: before it is sent, or before its answer is read."""
    request, count = Client._request, Counter[str]()

    def interrupted(self: Client, *arguments: Any, **content: Any) -> Any:
        count["requests"] += 1
        response = request(self, *arguments, **content) if answered or count["requests"] < number else None
        if count["requests"] == number:
            raise Killed
        return response

    with monkeypatch.context() as patch:
        patch.setattr(Client, "_request", interrupted)
        yield


@pytest.mark.parametrize("answered", [False, True])
def test_a_run_that_is_killed_at_any_request_loses_and_doubles_nothing(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person, monkeypatch: Patch, answered: bool
) -> None:
    monkeypatch.setattr(label_studio_project, "UPLOADS", 2)

    def labeled(folder: Path) -> LabelAnswer:
        with life(studio, dataset, folder) as run:
            while True:
                if (answer := run.ask([5, 2, 7], times=1)) is not None:
                    return answer
                for task in person.open_tasks(run.project)[:1]:
                    person.annotate(task, choice(truth(task["data"]["path"])))

    number, was_killed = 0, True
    while was_killed:
        number, was_killed = number + 1, False
        folder = tmp_path / str(number)
        studio.forget()
        with killed(monkeypatch, number, answered):
            try:
                labeled(folder)
            except Killed:
                was_killed = True
        answer = labeled(folder)
        assert len(studio.projects) == 1
        assert sorted(task["data"]["path"][-7:-4] for task in studio.tasks.values()) == ["002", "005", "007"]
        assert len({file for file, _ in studio.uploads}) == len(studio.uploads) == 3
        assert [NAMES[label] for label in answer.label] == [truth(dataset.paths[index]) for index in (5, 2, 7)]
        answers, _ = read_answers(folder / "labeling" / LOG)
        assert len({each.path for each in answers}) == len(answers) == 3
    assert number > 15


def test_restarts_and_errors_of_the_server_are_waited_out_with_a_line(dataset: Dataset, tmp_path: Path) -> None:
    state = FakeLabelStudio()
    with serving(state) as url:
        person, port = Person(url, LEGACY), int(url.rpartition(":")[2])
        oracle, lines = LabelStudioOracle(url=url), list[str]()
        context = oracle.serve(dataset, tmp_path, lines.append, lambda: PROGRESS)
        context.__enter__()
    run = Life(oracle, dataset, tmp_path, lines)
    assert run.ask([5, 2]) is None
    assert len(lines) == 2
    assert "no answer from" in lines[1]
    assert lines[1].endswith("; trying again every 0 s")
    with serving(state, port):
        assert run.ask([5, 2]) is None
        assert lines[2:] == ["Label Studio answers again", f"2 images to label at {url}/projects/1/data?labeling=1"]
        state.broken = 3
        assert run.ask([5, 2]) is None
        assert lines[4:] == [lines[4], "Label Studio answers again"]
        assert "503 Service Unavailable" in lines[4]
        for task in person.tasks(1):
            person.annotate(task, choice("one"))
    assert run.ask([5, 2], times=3) is None
    with serving(state, port):
        answer = run.ask([5, 2])
    assert answer is not None
    assert answer.label.tolist() == [1, 1]
    context.__exit__(None, None, None)


def test_an_import_that_the_server_completed_late_leaves_one_task(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2]) is None
    number, data = run.project, person.tasks(run.project)[0]["data"]
    for new in (data, data | {"path": "unlabeled/scan 009.png"}, {"path": "a person's own", "batch": "none"}):
        studio.import_into(number, query={}, content=[{"data": new, "predictions": []}])
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2]) is None
    paths = [task["data"]["path"] for task in person.tasks(number)]
    assert paths == ["unlabeled/scan 005.png", "unlabeled/scan 002.png", "a person's own"]


def test_of_two_tasks_for_an_image_the_answered_one_stays() -> None:
    def task(number: int, path: str, *annotations: int) -> dict[str, Any]:
        return {"id": number, "data": {"path": path}, "annotations": list(annotations)}

    tasks = [task(1, "a"), task(2, "a", 7), task(3, "b"), task(4, "b"), task(5, "c", 8), task(6, "d")]
    assert sorted(superfluous(tasks, {"a", "b"})) == [1, 4, 6]


# Answers


def annotation(*result: dict[str, Any], **more: Any) -> dict[str, Any]:
    own = {"id": 12, "updated_at": "2026-11-27T16:27:44.502550Z", "lead_time": 2.5, "was_cancelled": False}
    return own | {"created_username": "Ada King ada@example.org, 1", "result": list(result)} | more


def test_an_annotation_is_an_answer() -> None:
    reject = choice(REJECT_CHOICE, REJECT)
    cases = (
        (annotation(choice("cat")), ("label", "cat")),
        (annotation(choice("cat"), new_class(" owl ")), ("label", "owl")),  # the guess was chosen already
        (annotation(choice("cat"), new_class(" ")), ("label", "cat")),
        (annotation(choice("cat"), reject), ("reject", "")),
        (annotation(), ("skip", "")),
        (annotation(choice("cat"), was_cancelled=True), ("skip", "")),
        (annotation(choice("good", "quality")), ("skip", "")),
    )
    for given, expected in cases:
        answer = reply("a.png", given)
        assert (answer.action, answer.label) == expected
        assert answer[:4] == (
            "annotation-12-20261127162744502550",
            given["updated_at"],
            "a.png",
            "Ada King ada@example.org",
        )
        assert answer.seconds == 2.5
    assert reply("a.png", annotation(lead_time=-1)).seconds is None
    assert reply("a.png", annotation(created_username="", completed_by={"id": 4})).person == "account 4"
    for wrong, why in (([choice("cat"), choice("dog")], "must have one class, has 2"), ([new_class("x" * 201)], "200")):
        with pytest.raises(ValueError, match=why):
            reply("a.png", annotation(*wrong))


def test_answers_are_labels_rejections_skips_and_new_classes(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2, 7, 1]) is None
        first, second, third, fourth = person.tasks(run.project)
        typed = person.annotate(first, choice("three"), new_class("owl"))
        person.annotate(second, choice(REJECT_CHOICE, REJECT))
        person.annotate(third, was_cancelled=True)
        person.annotate(fourth, choice("one"))
        person.annotate(fourth, choice("owl"))  # a second person, later
        answer = run.ask([5, 2, 7, 1])
        assert answer is not None
        assert answer.label.tolist() == [10, -2, -1, 10]
        assert answer.class_names == (*NAMES, "owl")
        assert run.ask([7, 8], cycle=2, classes=answer.class_names) is None  # the skipped image is asked for again
        assert choices_of(studio.projects[run.project]["label_config"]) == [*NAMES, "owl"]
        again, new = person.open_tasks(run.project)
        assert again["data"]["path"] == third["data"]["path"]
        person.annotate(new, choice("two"))
        person.annotate(again, choice("two"))
        person.change(typed, choice("six"))
        person.annotate(second, choice("four"))
        answer = run.ask([7, 8], cycle=2, classes=answer.class_names)
        assert answer is not None
        assert answer.label.tolist() == [2, 2]
        assert answer.earlier is not None
        assert dict(zip(*(column.tolist() for column in answer.earlier), strict=True)) == {5: 6, 2: 4, 1: 10}


def test_changed_and_deleted_annotations_of_an_open_batch(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2, 7]) is None
        first, second, third = person.tasks(run.project)
        wrong, hasty = person.annotate(first, choice("one")), person.annotate(second, choice("one"))
        assert run.ask([5, 2, 7]) is None
        person.change(wrong, choice("two"))
        assert run.ask([5, 2, 7]) is None
        person.delete(wrong)
        person.change(hasty, was_cancelled=True)
        person.annotate(third, choice("three"))
        assert run.ask([5, 2, 7]) is None
        person.annotate(first, choice("four"))
        answer = run.ask([5, 2, 7])
        assert answer is not None
        assert answer.label.tolist() == [4, -1, 3]
    answers, _ = read_answers(tmp_path / "labeling" / LOG)
    assert Counter(answer.action for answer in answers) == {"label": 5, "undo": 3, "skip": 1, "finish": 1}
    assert len(answers) == len({answer.id for answer in answers})


def test_an_answer_that_does_not_count_is_reported_once(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path, new_classes=False) as run:
        assert run.ask([5, 2]) is None
        assert "new_class" not in studio.projects[run.project]["label_config"]
        first, second = person.tasks(run.project)
        person.annotate(second, choice("two"))
        annotation = person.annotate(first, choice("owl"))
        assert run.ask([5, 2]) is None
        person.change(annotation, choice("one"), choice("two"))
        assert run.ask([5, 2]) is None
        about = "Label Studio: the answer about unlabeled/scan 005.png does not count: "
        assert [line.removeprefix(about) for line in run.lines[2:]] == [
            "New classes are not allowed (oracle.new_classes=true allows them).",
            "must have one class, has 2: one, two",
        ]
        person.change(annotation, choice("one"))
        answer = run.ask([5, 2])
        assert answer is not None
        assert answer.label.tolist() == [1, 2]


def test_a_large_batch_is_read_in_pages(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(label_studio_client, "PAGE_SIZE", 3)
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([*range(7)]) is None
        for task in person.tasks(run.project):
            person.annotate(task, choice("two"))
        answer = run.ask([*range(7)])
    assert answer is not None
    assert answer.label.tolist() == [2] * 7


def test_a_version_of_an_annotation_has_an_id_of_its_own() -> None:
    changed = annotation(updated_at="2026-11-27T16:27:45.000000Z")
    assert version_id(annotation()) != version_id(changed) != version_id(changed | {"id": 13})


# The project


def test_an_interface_that_people_have_made_keeps_its_controls() -> None:
    own = live_interface(("cat", '"<dog>"'), new_classes=False).replace("<View>", '<View><Header value="Look"/>')
    assert is_usable(own)
    assert extended_interface(own, ("cat",), new_classes=True) == own
    extended = extended_interface(own, ("cat", '"<dog>"', "owl"), new_classes=True)
    assert choices_of(extended) == ["cat", '"<dog>"', "owl"]
    assert "Header" in extended
    assert "new_class" not in extended
    assert choices_of(extended_interface("<View></View>", ("a",), new_classes=True)) == ["a"]
    assert not is_usable(own.replace('name="label"', 'name="quality"'))


def test_a_project_is_reused_if_it_fits(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    number = studio.make_project(content={"title": "ours"})["id"]
    with life(studio, dataset, tmp_path / "a", project=number) as run:
        assert run.ask([5]) is None
    with life(studio, dataset, tmp_path / "b", project=number) as other:  # runs in one project do not mix
        assert other.ask([5]) is None
        person.annotate(person.tasks(number)[0], choice("one"))
        assert other.ask([5]) is None
        person.annotate(person.tasks(number)[1], choice("two"))
        answer = other.ask([5])
    assert answer is not None
    assert answer.label.tolist() == [2]
    assert len(studio.projects) == 1


def test_a_deleted_project_is_made_again_for_what_is_left(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path, person: Person
) -> None:
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2]) is None
        person.annotate(person.tasks(run.project)[0], choice("one"))
        assert run.ask([5, 2]) is None
        studio.projects.clear()
    with life(studio, dataset, tmp_path) as run:
        assert run.ask([5, 2]) is None
        (left,) = person.tasks(run.project)
        person.annotate(left, choice("two"))
        answer = run.ask([5, 2])
    assert answer is not None
    assert answer.label.tolist() == [1, 2]


def test_an_interface_that_was_broken_meanwhile_is_not_replaced(
    studio: FakeLabelStudio, dataset: Dataset, tmp_path: Path
) -> None:
    with life(studio, dataset, tmp_path) as run:
        studio.projects[run.project]["label_config"] = broken = "<View><Header value='x'/></View>"
        assert run.ask([5]) is None
        assert "its labeling interface has lost what a run needs" in run.lines[-1]
        assert studio.projects[run.project]["label_config"] == broken


# Tokens and addresses


def test_a_personal_access_token_is_exchanged_and_renewed(server: FakeLabelStudio) -> None:
    client = Client(server.url + "/", PERSONAL)
    for _ in range(3):
        assert client.get("api/current-user/whoami")["id"] == 1
    assert server.requests.count("POST api/token/refresh") == 1
    server.access += 1  # the access token has expired
    assert client.get("api/current-user/whoami")["id"] == 1
    assert server.requests.count("POST api/token/refresh") == 2
    with pytest.raises(LabelStudioError, match="401 Token is invalid"):
        Client(server.url, PERSONAL + "x").get("api/current-user/whoami")


def test_a_password_file_does_not_replace_the_token(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Client(server.url, LEGACY).get("api/current-user/whoami")["id"] == 1


def test_bad_input_gets_one_line(sslpl: Command) -> None:
    cases = (
        (
            "oracle.url=http://127.0.0.1:9",
            "oracle.url=http://127.0.0.1:9: no answer from http://127.0.0.1:9: Connection",
        ),
        ("oracle.project=mine", "oracle.project=mine: must be "),
        ("oracle.images=inline", "oracle.images=inline: must be "),
        ("budget.initial_pool=balanced", "must be random or query with oracle=label_studio"),
    )
    for argument, message in cases:
        done = sslpl(*QUICK, *STUDIO, argument)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert message in done.err


def refusal(dataset: Dataset, folder: Path, **options: Any) -> str:
    """Returns why an oracle cannot be used."""

    def use() -> None:
        oracle = LabelStudioOracle(**options)
        with oracle.serve(oracle.prepare(dataset), folder, print, lambda: PROGRESS):
            pass

    with pytest.raises(UserError) as error:
        use()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_server_that_cannot_be_used_is_named(server: FakeLabelStudio, dataset: Dataset, tmp_path: Path) -> None:
    other = server.make_project(content={"title": "other", "label_config": "<View><Header value='x'/></View>"})["id"]
    unknown = f"oracle.project=99: must be the number of a project at {server.url}; null makes one"
    assert refusal(dataset, tmp_path, url=server.url, project=99) == unknown
    message = refusal(dataset, tmp_path, url=server.url, project=other)
    assert message.startswith(f"oracle.project={other}: must be a project without a labeling interface, or one whose")
    message = refusal(dataset, tmp_path, url=f"{server.url}/nothing")
    assert message.startswith(f"oracle.url={server.url}/nothing: must be the address of a Label Studio; GET")
    for wrong in ("127.0.0.1:8080", "http://", "http://ada:secret@127.0.0.1", "ftp://127.0.0.1"):
        assert f"oracle.url={wrong}: must be the address of a Label Studio, as" in refusal(dataset, tmp_path, url=wrong)


def test_a_missing_or_wrong_token_is_named(
    server: FakeLabelStudio, dataset: Dataset, tmp_path: Path, monkeypatch: Patch
) -> None:
    for token in ("wrong", PERSONAL + "x"):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
        message = refusal(dataset, tmp_path, url=server.url)
        assert message.startswith(f"LABEL_STUDIO_API_KEY: must be a token of an account at oracle.url={server.url}; it")
        assert token not in message
    for token in ("", "not a token", "tökén"):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
        assert "LABEL_STUDIO_API_KEY: must be set in the environment" in refusal(dataset, tmp_path, url=server.url)


def test_a_missing_package_is_named(dataset: Dataset, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "sslpl.oracle.label_studio_client", None)
    assert "oracle=label_studio: needs a package; pip install 'sslpl[label_studio]'" in refusal(dataset, tmp_path)


def test_data_without_images_to_show_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"oracle\.images=local_files: must be upload"):
        LabelStudioOracle(images="local_files").prepare(dataset._replace(paths=()))


def test_how_people_label_is_not_part_of_the_id() -> None:
    oracle = {
        "_target_": "sslpl.oracle.LabelStudioOracle",
        "url": "x",
        "project": 3,
        "images": "upload",
        "guesses": True,
    }
    kept = scientific_config({"dataset": {}, "oracle": oracle})["oracle"]
    assert kept == {"_target_": "sslpl.oracle.LabelStudioOracle"}
