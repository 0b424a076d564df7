"""The labeling page in process: a run that goes on by itself, answers that are neither lost nor doubled, the token."""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, run_folder, timeless
from labeling_page import PageClient, item, label_until_end, wait_for_link
from PIL import Image
from test_oracle import FILES, QUICK, read, truth
from test_oracle import NAMES as DIGITS

from sslpl.config.identity import scientific_config
from sslpl.oracle.answer_log import LOG, AnswerLog, read_answers
from sslpl.oracle.browser import BrowserOracle, read_token
from sslpl.oracle.labeling import LEASE_SECONDS, Batch, Labeling
from sslpl.oracle.labeling_server import bound_socket, labeling_app, running
from sslpl.oracle.live_labels import label_answer
from sslpl.oracle.page_pictures import MAX_SIDE, jpeg, picture_file, small_picture
from sslpl.oracle.submissions import Submission
from sslpl.phases.corrections import correct_labels
from sslpl.pool import LabelPool
from sslpl.recording import recorder
from sslpl.state import Ledger, State
from sslpl.types import EarlierLabels, LabelRequest, Selection, UserError

Command = Callable[..., Result]
BROWSER = (FILES[0], "oracle=browser", "oracle.port=0", "method=entropy", "budget.cycles=2")
CLASSES, NAMES = ("cat", "<script>alert(1)</script>"), tuple(f"photos/{n}.png" for n in range(20))


@pytest.fixture(autouse=True)
def no_pictures_of_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables plots, which are tested elsewhere and take most of the time of so small a run."""
    monkeypatch.setattr(recorder, "learning_curve", lambda *_: None)


def test_a_run_goes_on_as_people_label(sslpl: Command) -> None:
    with ThreadPoolExecutor(1) as threads:
        count = threads.submit(lambda: label_until_end(wait_for_link(Path("outputs")), truth))
        done = sslpl(*QUICK, *BROWSER)
    assert done.code == 0, done.err
    assert count.result() == 24 + 8
    labeling = run_folder() / "labeling"
    answers, _ = read_answers(labeling / LOG)
    assert len({answer.path for answer in answers}) == len(answers) == 24 + 8
    assert {answer.person for answer in answers} == {"Ada"}
    assert [bool(answer.guess) for answer in answers] == [False] * 24 + [True] * 8
    recorded = {row["path"]: row["class"] for row in read(labeling / "ledger.csv")}
    assert recorded == {answer.path: answer.label for answer in answers}
    assert all(label == truth(path) for path, label in recorded.items())
    assert {row["source"] for row in read(labeling / "ledger.csv")} == {"labeling/answers.jsonl"}
    assert [row["labeled"] for row in timeless(run_folder())] == ["24", "32"]
    assert (labeling / "link.txt").stat().st_mode & 0o077 == 0


# The batch and its answers


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reopened(folder: Path, clock: Clock, cycle: int = 0, images: range = range(6), names: int = 2) -> Labeling:
    """Returns the labeling of a folder as a new process sees it, with a batch of images."""
    labeling = Labeling(AnswerLog(folder / LOG), NAMES, CLASSES, new_classes=True, clock=clock)
    guesses = tuple((CLASSES[n % names], 0.5 + n / 100) if cycle else None for n in images)
    labeling.open_batch(Batch(cycle, tuple(images), guesses, CLASSES))
    return labeling


@pytest.fixture
def labeling(tmp_path: Path, clock: Clock) -> Labeling:
    return reopened(tmp_path, clock)


def page(name: str = "ada", **more: Any) -> Submission:
    return Submission(tab=f"tab-of-{name}", person=name, **more)


def give(labeling: Labeling, *items: dict[str, Any], name: str = "ada") -> list[dict[str, Any]]:
    return labeling.submit(page(name, items=items))


def indices(records: list[dict[str, Any]]) -> list[int]:
    return [record["index"] for record in records]


def test_people_and_tabs_get_different_images(labeling: Labeling, clock: Clock) -> None:
    assert indices(labeling.take(page("ada", want=4))) == [0, 1, 2, 3]
    assert indices(labeling.take(page("ben", want=4))) == [4, 5]
    assert indices(labeling.take(page("ada", want=4, showing=2))) == [2, 0, 1, 3]
    clock.now = LEASE_SECONDS + 1  # Ada's computer was closed
    assert indices(labeling.take(page("ben", want=4))) == [0, 1, 2, 3]
    labeling.leave("tab-of-ben")
    assert indices(labeling.take(page("ada", want=9))) == [0, 1, 2, 3, 4, 5]


def test_an_answer_counts_once_however_often_it_is_sent(labeling: Labeling, tmp_path: Path) -> None:
    first, *_ = labeling.take(page())
    answer = item("label", first, label="cat", note=" blurred ", unsure=True, seconds=2.5)
    assert give(labeling, answer)[0]["ok"]
    assert give(labeling, answer)[0]["ok"]
    (again,) = give(labeling, item("label", first, label=CLASSES[1]), name="ben")
    assert (again["ok"], again["reason"]) == (False, "ada was faster: this image has another answer now.")
    assert again["image"]["answer"]["label"] == "cat"
    ((saved,), size) = read_answers(tmp_path / LOG)
    assert (saved.label, saved.note, saved.unsure, saved.seconds, saved.person) == ("cat", "blurred", True, 2.5, "ada")
    assert size == (tmp_path / LOG).stat().st_size
    twice = [item("label", labeling.take(page())[0], label="cat") for _ in range(2)]
    assert [result["ok"] for result in give(labeling, *twice)] == [True, False]


def test_a_changed_answer_says_what_it_replaces(labeling: Labeling, tmp_path: Path) -> None:
    (first, *_) = labeling.take(page())
    (given,) = give(labeling, item("label", first, label="cat"))
    (changed,) = give(labeling, item("reject", given["image"]), name="ben")
    (undone,) = give(labeling, item("undo", changed["image"]))
    assert undone["image"]["answer"]["label"] == "cat"
    (undone,) = give(labeling, item("undo", undone["image"]))
    assert undone["image"]["answer"] is None
    assert give(labeling, item("undo", undone["image"]))[0]["reason"] == "There is nothing to undo."
    answers, _ = read_answers(tmp_path / LOG)
    assert [answer.replaces for answer in answers] == ["", *(answer.id for answer in answers[:-1])]
    assert indices(labeling.take(page(want=1))) == [0]


def test_a_killed_process_loses_nothing(labeling: Labeling, tmp_path: Path, clock: Clock) -> None:
    for record in labeling.take(page(want=3)):
        give(labeling, item("label", record, label="cat"))
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"id": "half a li')  # the power failed before the page was told
    again = reopened(tmp_path, clock)
    assert indices(again.take(page())) == [3, 4, 5]
    give(again, item("label", again.take(page())[0], label="cat"))
    assert len(read_answers(tmp_path / LOG)[0]) == 4
    (tmp_path / LOG).write_text('{"id": 3}\n')
    with pytest.raises(UserError, match="line 1: is no answer of the labeling page"):
        AnswerLog(tmp_path / LOG)


def test_an_answer_that_cannot_be_written_does_not_count(labeling: Labeling, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = labeling.take(page())
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            give(labeling, item("label", first, label="cat"))
    assert labeling.overview()["open"] == 6
    assert labeling.log.path.stat().st_size == 0
    assert give(labeling, item("label", first, label="cat"))[0]["ok"]


def test_skipped_images_come_last_and_may_be_left_out(labeling: Labeling) -> None:
    for record in labeling.take(page(want=2)):
        give(labeling, item("skip", record))
    assert indices(labeling.take(page())) == [2, 3, 4, 5, 0, 1]
    assert give(labeling, item("finish"))[0]["reason"] == "There are images left to label."
    for record in labeling.take(page(want=4)):
        give(labeling, item("reject", record))
    assert labeling.overview()["needs_label"]  # of the first batch
    assert not labeling.wait(0)
    assert not give(labeling, item("finish"))[0]["ok"]
    give(labeling, item("label", labeling.take(page())[0], label="cat"))
    assert not labeling.wait(0)
    assert give(labeling, item("finish"))[0]["ok"]
    assert labeling.wait(0)
    assert sorted(answer.action for answer in labeling.close_batch()) == ["label", *["reject"] * 4]


def test_an_answer_after_the_batch_corrects_it(labeling: Labeling) -> None:
    for record in labeling.take(page()):
        give(labeling, item("label", record, label="cat"))
    assert labeling.wait(0)
    labeling.close_batch()
    assert labeling.take(page()) == []
    record = labeling.review("ada")[0]
    assert not give(labeling, item("undo", record))[0]["ok"]
    (changed,) = give(labeling, item("label", record, label=CLASSES[1]))
    assert changed["image"]["answer"]["label"] == CLASSES[1]
    labeling.open_batch(Batch(1, (6, 7), (None, None), CLASSES))
    give(labeling, item("label", changed["image"], label="cat"), item("label", labeling.take(page())[0], label="cat"))
    assert [labeling.cycle_of(index) for index in (record["index"], 6, 7)] == [0, 1, 1]
    assert labeling.overview()["people"] == {"ada": 1}


def test_a_second_look_begins_with_unsure_answers(tmp_path: Path, clock: Clock) -> None:
    labeling = reopened(tmp_path, clock, cycle=1, names=1)
    for record in labeling.take(page()):
        label = CLASSES[record["index"] == 2]  # which differs from the guess
        give(labeling, item("label", record, label=label, unsure=record["index"] == 4))
    assert indices(labeling.review("ada"))[:2] == [4, 2]


def test_the_grid_has_images_with_one_guess(tmp_path: Path, clock: Clock) -> None:
    labeling = reopened(tmp_path, clock, cycle=1)
    give(labeling, item("label", labeling.take(page())[1], label="cat"))
    assert indices(labeling.take(page(grid=True, want=48))) == [4, 2, 0]
    assert indices(labeling.take(page("ben"))) == [3, 5]


def test_new_classes_are_for_everybody(labeling: Labeling, tmp_path: Path, clock: Clock) -> None:
    assert give(labeling, item("class", label=" owl "))[0]["ok"]
    for name in ("owl", "Cat", " ", "a\nb"):
        assert not give(labeling, item("class", label=name))[0]["ok"]
    first, second, *_ = labeling.take(page("ben"))
    assert give(labeling, item("label", first, label="owl"), name="ben")[0]["ok"]
    assert not give(labeling, item("label", second, label="bat"))[0]["ok"]
    assert reopened(tmp_path, clock).overview()["classes"] == [*CLASSES, "owl"]
    labeling.new_classes = False
    assert "oracle.new_classes=true" in give(labeling, item("class", label="bat"))[0]["reason"]


# What the run receives


def request(folder: Path, index: list[int], cycle: int = 1) -> LabelRequest:
    selection = Selection(torch.tensor(index), torch.zeros(len(index)))
    return LabelRequest(None, folder, cycle, selection, "", CLASSES, None)  # type: ignore[arg-type]


def test_the_answers_are_labels_corrections_and_rejections(labeling: Labeling, tmp_path: Path) -> None:
    give(labeling, item("class", label="owl"), item("class", label="unused"))
    records = labeling.take(page())
    for record, label in zip(records[:4], ("owl", "cat", "", CLASSES[1]), strict=True):
        give(labeling, item("label" if label else "reject", record, label=label))
    answer = label_answer(request(tmp_path, [2, 0, 5]), NAMES, labeling.close_batch())
    assert answer.label.tolist() == [-2, 2, -1]
    assert answer.class_names == (*CLASSES, "owl")
    assert answer.earlier is not None
    assert [column.tolist() for column in answer.earlier] == [[1, 3], [0, 1]]


def test_corrections_change_remove_and_add_labels() -> None:
    index, label = torch.tensor([3, 1, 4, 7]), torch.tensor([0, 1, 1, 0])
    pool = LabelPool(10, index).reject(torch.tensor([8, 9]))
    ledger = Ledger(torch.tensor([0, 0, 1, 1]), index, label, torch.zeros(4, dtype=torch.float64))
    network = torch.nn.Identity()
    state = State(pool, ledger, torch.tensor([]), network, None, held_out=torch.tensor([4, 7]))
    earlier = EarlierLabels(torch.tensor([1, 4, 9, 3, 8, 2]), torch.tensor([0, -2, 1, 0, -2, 1]))
    correct_labels(state, earlier, cycle=2)
    assert state.ledger.index.tolist() == state.pool.labeled.tolist() == [3, 1, 7, 9, 2]
    assert state.ledger.label.tolist() == [0, 0, 0, 1, 1]
    assert state.ledger.cycle.tolist() == [0, 0, 1, 2, 2]
    assert state.held_out.tolist() == [7]
    assert state.pool.rejected.tolist() == [8, 4]
    assert state.pool.unlabeled.tolist() == [0, 5, 6]
    with pytest.raises(ValueError, match="already labeled or rejected"):
        state.pool.label(torch.tensor([8]))
    correct_labels(state, earlier, cycle=3)
    assert state.ledger.cycle.tolist() == [0, 0, 1, 2, 2]


# The server


@pytest.fixture
def client(labeling: Labeling, tmp_path: Path) -> Iterator[PageClient]:
    (tmp_path / "photos").mkdir()
    for n in (0, 1):
        Image.new("RGB", (400, 300), "red").save(tmp_path / "photos" / f"{n}.{'png' if n else 'tiff'}")
    (tmp_path / "photos" / "0.tiff").rename(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "2.png").write_bytes(b"no image")
    (tmp_path / "photos" / "19.png").write_bytes((tmp_path / "photos" / "1.png").read_bytes())
    listener = bound_socket("127.0.0.1", 0)
    app = labeling_app(labeling, lambda n: tmp_path / NAMES[n], lambda: {"end": ""}, "secret", {"127.0.0.1"})
    with running(app, listener):
        yield PageClient(f"http://127.0.0.1:{listener.getsockname()[1]}/?token=secret")


def test_nothing_is_read_or_written_without_the_token(client: PageClient, labeling: Labeling) -> None:
    paths = ("/", "/page.js", "/page.css", "/image/0", "/small/0", "/api/review", "/nothing")
    valid = {"tab": "another-tab", "person": "eve", "items": [item("label", labeling.take(page())[0], label="cat")]}
    cookie = client.cookie
    for wrong in ("", cookie[:-1], cookie + "x", cookie.replace("secret", "é"), "token=secret", cookie.split("_")[0]):
        client.cookie = wrong.encode().decode("latin-1")
        assert {client.request("GET", path)[0] for path in paths} == {403}
        assert client.request("POST", "/api/answers", valid)[0] == 403
        assert client.request("POST", "/api/leave")[0] == 403
    assert client.request("GET", "/?token=wrong")[0] == 403
    assert client.request("GET", "/image/0?token=secret")[0] == 403  # only the page takes it from the link
    assert client.request("GET", "/?token=secret")[0] == 200
    client.cookie = cookie
    assert client.request("GET", "/", Host="evil.example")[0] == 403  # DNS rebinding
    for origin in ("http://evil.example", f"http://127.0.0.1:{client.port + 1}", "null"):
        assert client.request("POST", "/api/answers", valid, Origin=origin)[0] == 403
    assert labeling.overview()["answers"] == 0
    own = f"http://127.0.0.1:{client.port}"
    assert client.request("POST", "/api/answers", valid, Origin=own)[0] == 200
    assert labeling.overview()["answers"] == 1


def test_images_are_served_by_index_alone(client: PageClient) -> None:
    assert client.request("GET", "/image/0")[1][:3] == b"\xff\xd8\xff"  # a TIFF, which no browser shows, as JPEG
    assert client.request("GET", "/image/1")[1][:4] == b"\x89PNG"
    assert len(client.request("GET", "/small/1")[1]) < 5000
    whole = client.request("GET", "/image/0")
    for side in ("", "-1", "0", "x", "99999999999999999999"):
        assert client.request("GET", f"/image/0?side={side}") == whole
    for path in (
        "2",
        "19",
        "20",
        "-1",
        "99999999999999999999",
        "../page.css",
        "..%2f..%2fetc%2fpasswd",
        "0/../1",
        "0.5",
    ):
        assert client.request("GET", f"/image/{path}")[0] == 404, path  # damaged, not asked for, not there
    assert client.request("GET", "/page.css/../browser.py")[0] == 404


def test_what_is_sent_is_validated(client: PageClient, labeling: Labeling) -> None:
    (first, *_) = client.send()["queue"]
    code, body = client.request("POST", "/api/answers", {"tab": client.tab, "person": " ", "items": []})
    assert (code, json.loads(body)["error"][:6]) == (422, "person")
    for wrong in ({"id": "x"}, {"seconds": -1}, {"action": "delete"}, {"note": "x" * 2001}):
        bad = {"tab": client.tab, "person": "Ada", "items": [item("label", first, label="cat") | wrong]}
        assert client.request("POST", "/api/answers", bad)[0] == 422
    assert client.request("POST", "/api/answers", {"tab": "x" * 2**21})[0] == 413
    text = {"Content-Type": "text/plain"}
    assert client.request("POST", "/api/answers", None, **text)[0] == 415
    refused = client.send(item("label", {"index": 19, "replaces": ""}, label="cat"), item("label", first, label="dog"))
    assert [result["reason"] for result in refused["results"]] == ["This image was not asked for.", "dog is no class."]
    assert labeling.overview()["answers"] == 0


def test_the_page_requests_no_other_host(client: PageClient) -> None:
    for path in ("/", "/page.css", "/page.js"):
        code, body = client.request("GET", path)
        assert code == 200
        assert b"//" not in body.replace(b"http://www.w3.org/2000/svg", b"").replace(b"\n//", b"").replace(b" // ", b"")
    assert b"innerHTML" not in body


def test_large_and_unusual_files_are_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGBA", (900, 300), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert picture_file(tmp_path / "clear.png", 800) == ((tmp_path / "clear.png").read_bytes(), "image/png")
    for side, width in ((400, 400), (10 * MAX_SIDE, 900)):
        monkeypatch.setattr("sslpl.oracle.page_pictures.MAX_BYTES", 10)
        content, media_type = picture_file(tmp_path / "clear.png", side)
        with Image.open(io.BytesIO(content)) as sent:
            assert (media_type, sent.size) == ("image/jpeg", (width, width // 3))
    (tmp_path / "small.jpg").write_bytes(small_picture(tmp_path / "clear.png"))
    with Image.open(tmp_path / "small.jpg") as small:
        assert small.size == (200, 67)
        assert small.getpixel((5, 5)) == (255, 255, 255)
    assert jpeg(tmp_path / "clear.png", 10) != jpeg(tmp_path / "clear.png", 20)


# The options


def test_other_hosts_and_used_ports_are_refused(sslpl: Command, tmp_path: Path) -> None:
    done = sslpl(*QUICK, *BROWSER, "oracle.host=0.0.0.0")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "oracle.host=0.0.0.0: must be 127.0.0.1 unless oracle.share=true" in done.err
    assert BrowserOracle(host="0.0.0.0", share=True).share
    with bound_socket("127.0.0.1", 0) as used:
        port = used.getsockname()[1]
        done = sslpl(*QUICK, *BROWSER, f"oracle.port={port}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"oracle.port={port}: cannot be used on oracle.host=127.0.0.1" in done.err
    assert "oracle.port=70000: must be " in sslpl(*QUICK, *BROWSER, "oracle.port=70000").err


def test_a_resumed_run_keeps_its_link(tmp_path: Path) -> None:
    (tmp_path / "link.txt").write_text("http://127.0.0.1:8765/?token=abc-123_X\n")
    assert read_token(tmp_path / "link.txt") == "abc-123_X"
    assert len({read_token(tmp_path / "none") for _ in range(2)}) == 2


def test_how_people_label_is_not_part_of_the_id() -> None:
    oracle = {"_target_": "sslpl.oracle.BrowserOracle", "port": 1, "host": "::1", "share": True, "guesses": False}
    assert scientific_config({"dataset": {}, "oracle": oracle})["oracle"] == {"_target_": "sslpl.oracle.BrowserOracle"}


# Several answers about each image


@pytest.fixture
def pair(tmp_path: Path, clock: Clock) -> Labeling:
    """Returns a labeling of three images that two people answer, and a third one where they disagree."""
    log = AnswerLog(tmp_path / LOG, by_person=True)
    labeling = Labeling(log, NAMES, CLASSES, new_classes=True, clock=clock, annotators=2, max_answers=3)
    labeling.open_batch(Batch(0, (0, 1, 2), (None,) * 3, CLASSES))
    return labeling


def say(labeling: Labeling, name: str, **labels: str) -> None:
    """Answers about images, as in image0="A"."""
    items = [
        {
            "id": f"{name}-{image}-0",
            "action": "label",
            "index": int(image[-1]),
            "label": CLASSES["ABCDEFGH".index(said)],
        }
        for image, said in labels.items()
    ]
    assert all(result["ok"] for result in give(labeling, *items, name=name))


def test_every_image_goes_to_different_people_until_they_agree(pair: Labeling) -> None:
    say(pair, "ada", image0="A", image1="A", image2="B")
    assert indices(pair.take(page("ada"))) == []
    assert pair.overview()["open"] == 3
    assert sorted(indices(pair.take(page("bob")))) == [0, 1, 2]
    assert all(record["answer"] is None for record in pair.take(page("bob")))  # nobody sees the others' answers
    assert pair.review("bob") == []
    say(pair, "bob", image0="A", image1="B", image2="B")
    assert not pair.wait(0)
    assert [indices(pair.take(page(name))) for name in ("ada", "bob", "Ada", "eve")] == [[], [], [], [1]]
    say(pair, "eve", image1="B")
    assert pair.wait(0)
    assert len(pair.close_batch()) == 7


def test_a_name_is_one_person_however_it_is_written(pair: Labeling) -> None:
    say(pair, "ada", image0="A")
    assert indices(pair.take(Submission(tab="another-tab", person=" Ada "))) == [1, 2]
    (result,) = give(pair, {"id": "ada-again-0", "action": "label", "index": 0, "label": CLASSES[1]}, name="ADA")
    assert not result["ok"]  # it replaces an answer that the page has not seen


def test_an_own_answer_is_corrected_alone(pair: Labeling, tmp_path: Path, clock: Clock) -> None:
    say(pair, "ada", image0="A", image1="A", image2="A")
    say(pair, "bob", image0="A", image1="A", image2="B")
    change = {"id": "bob-image2-1", "action": "label", "index": 2, "label": CLASSES[0], "replaces": "bob-image2-0"}
    assert give(pair, change, name="bob")[0]["ok"]
    assert pair.wait(0)
    pair.log.close()
    again = Labeling(
        AnswerLog(tmp_path / LOG, by_person=True), NAMES, CLASSES, True, clock, annotators=2, max_answers=3
    )
    again.open_batch(Batch(0, (0, 1, 2), (None,) * 3, CLASSES))
    assert again.wait(0)
    assert len(again.close_batch()) == 6


def test_the_answers_of_several_people_become_labels(pair: Labeling, tmp_path: Path) -> None:
    say(pair, "ada", image0="A", image1="A", image2="B")
    say(pair, "bob", image0="A", image1="B", image2="B")
    say(pair, "eve", image1="B")
    answer = label_answer(request(tmp_path, [0, 1, 2], 0), NAMES, pair.close_batch(), "majority")
    assert answer.label.tolist() == [0, 1, 1]
    assert answer.annotations is not None
    assert answer.annotations.people == ("ada", "bob", "eve")
    assert len(answer.annotations.label) == 7


def test_two_people_label_a_run(sslpl: Command) -> None:
    def label(name: str, wrong: int) -> int:
        def said(path: str) -> str:
            return truth(path) if wrong == 0 or int(path[-7:-4]) % wrong else DIGITS[0]

        return label_until_end(wait_for_link(Path("outputs")), said, name)

    with ThreadPoolExecutor(3) as threads:
        counts = [threads.submit(label, name, wrong) for name, wrong in (("Ada", 0), ("Bob", 3), ("Eve", 0))]
        done = sslpl(*QUICK, *BROWSER, "oracle.annotators=2")
    assert done.code == 0, done.err
    assert sum(count.result() for count in counts) >= 2 * 32
    rows = timeless(run_folder())
    answers, _ = read_answers(run_folder() / "labeling" / LOG)
    assert [row["labeled"] for row in rows] == ["24", "32"]
    assert int(rows[-1]["answers"]) == len(answers) >= 64
    people = {path: [a.person for a in answers if a.path == path] for path in {a.path for a in answers}}
    assert len(people) == 32
    assert all(len(set(names)) == len(names) >= 2 for names in people.values())
