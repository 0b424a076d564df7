"""Labels from people: requests, valid and invalid answers, and that a run with label files equals a simulated one."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Killed, Result, run_folder, timeless
from PIL import Image
from studio import annotated, minimal, valid_tasks

from sslpl.data.datasets import digits
from sslpl.data.images import TensorImages
from sslpl.learn.metrics import loss_rank_correlation
from sslpl.learn.sums import FinetuneSums, pseudo_label_quality
from sslpl.models.backbone import grow_head, small_cnn
from sslpl.oracle import oracles
from sslpl.oracle.label_request import write_request
from sslpl.oracle.label_studio import export_rows, interface, tasks
from sslpl.oracle.label_table import read_table, validate_labels
from sslpl.oracle.oracles import FileOracle, SimulatedOracle
from sslpl.query.random import random
from sslpl.recording import checkpoint, recorder
from sslpl.report.read import read_run
from sslpl.ssl.rules import pseudo_label_counts
from sslpl.tracking.trackers import NoTracker
from sslpl.types import Dataset, InvalidLabels, LabelRequest, Predictions, Selection, UserError, WaitingForLabels

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
POOL, TEST, FIRST, MORE = 90, 30, 24, 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUICK = (*TINY, f"budget.initial={FIRST}", f"budget.per_cycle={MORE}", "budget.candidates=40", "training.epochs=1")
FILES = ("dataset._target_=test_oracle.photos", "oracle=file")


def photos(root: str = "data", flip: bool = False, cutout: int | None = None) -> Dataset:
    """Writes some digits as image files; `known.json` below the root lists those that are labeled already."""
    data = digits(root)
    labels, known = data.train_labels[:POOL].clone(), Path(root) / "known.json"
    if known.exists():
        labels[[position for position in range(POOL) if position not in json.loads(known.read_text())]] = -1
    assert isinstance(data.train, TensorImages)
    assert isinstance(data.test, TensorImages)
    return data._replace(
        train=TensorImages(data.train.data[:POOL]),
        train_labels=labels,
        test=TensorImages(data.test.data[:TEST]),
        test_labels=data.test_labels[:TEST],
        class_names=NAMES,
        paths=tuple(f"unlabeled/scan {position:03d}.png" for position in range(POOL)),
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def truth(path: str) -> str:
    return NAMES[int(digits().train_labels[int(path[-7:-4])])]


def answer(folder: Path, name: str = "labels.csv", labels: Callable[[str], str] = truth) -> list[str]:
    """Labels a requested batch; returns the paths."""
    paths = [row["path"] for row in read(folder / "to_label.csv")]
    lines = [f"{path},{labels(path)}" for path in paths]
    (folder / name).write_text("\n".join(["path,label", *lines]) + "\n")
    return paths


def status() -> dict[str, Any]:
    return json.loads((run_folder() / "status.json").read_text())


def without_hidden(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    hidden = ("loss_rank_correlation", "pseudo_label_accuracy")
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_a_run_through_files_is_the_same_run(sslpl: Command, tmp_path: Path, known: bool) -> None:
    assert sslpl(*QUICK, FILES[0], "training.epochs=2", "runtime.output_dir=simulated").code == 0
    simulated = run_folder(Path("simulated"))
    ledger = read(simulated / "queries.csv")
    if known:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "known.json").write_text(json.dumps([int(row["index"]) for row in ledger[:FIRST]]))
    command = (*QUICK, *FILES, "training.epochs=2", "budget.initial=5" if known else f"budget.initial={FIRST}")
    for cycle in range(known, 3):
        done = sslpl(*command)
        batch = run_folder() / "labeling" / f"cycle{cycle}"
        count = FIRST if cycle == 0 else MORE
        assert done.code == 0, done.err
        assert done.out == (
            f"waiting for the labels of {count} images: fill in the column label of {batch}/to_label.csv, save it as "
            "labels.csv beside it (or a JSON export of Label Studio as label_studio_export.json), and run the same "
            "command again\n"
        )
        assert (status()["state"], status()["images"]) == ("waiting", count)
        assert len(timeless(run_folder())) == cycle if cycle else not (run_folder() / "metrics.csv").exists()
        assert read_run(run_folder()).note == f"{cycle} of 3 cycles: waits for the labels of {count} images"
        answer(batch)
    done = sslpl(*command)
    assert done.code == 0, done.err
    assert status()["state"] == "finished"
    assert (run_folder() / "queries.csv").read_bytes() == (simulated / "queries.csv").read_bytes()
    rows = timeless(run_folder())
    assert without_hidden(rows) == without_hidden(timeless(simulated))
    assert all(row["pseudo_label_accuracy"] == row["loss_rank_correlation"] == "" for row in rows)
    assert all(row["pseudo_label_rate"] for row in rows[:2])
    weights = [torch.load(f / "checkpoint" / "weights.pt", weights_only=True) for f in (run_folder(), simulated)]
    assert all(torch.equal(a, b) for a, b in zip(*(w["backbone"].values() for w in weights), strict=True))
    recorded = read(run_folder() / "labeling" / "ledger.csv")
    assert [row["label"] for row in recorded] == [row["label"] for row in ledger]
    assert all(row["class"] == truth(row["path"]) for row in recorded)
    assert [bool(row["time"]) for row in recorded] == [not known] * FIRST + [True] * 2 * MORE
    assert {row["source"] for row in recorded[FIRST:]} == {"labeling/cycle1/labels.csv", "labeling/cycle2/labels.csv"}


@pytest.fixture(autouse=True)
def no_pictures_of_curves(monkeypatch: Patch) -> None:
    """Disables plots, which are tested elsewhere and take most of the time of so small a run."""
    monkeypatch.setattr(recorder, "learning_curve", lambda *_: None)


def test_a_kill_or_a_mistake_while_waiting_loses_nothing(sslpl: Command, monkeypatch: Patch) -> None:
    command = (*QUICK, *FILES, "method=entropy", "budget.cycles=2")
    sslpl(*command)
    first = run_folder() / "labeling" / "cycle0"
    asked = {path.name: path.read_bytes() for path in first.iterdir()}
    assert set(asked) == {"to_label.csv", "contact_sheet.png", "label_studio.json", "label_studio.xml"}
    (first / "contact_sheet.png").unlink()  # a kill while the request was written
    assert sslpl(*command).code == 0
    assert {path.name: path.read_bytes() for path in first.iterdir()} == asked
    answer(first, labels=lambda path: truth(path)[:-1])
    typed = (first / "labels.csv").read_bytes()
    saved = status()
    done = sslpl(*command)
    assert done.code == 2
    lines = done.err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(f"sslpl: {first}/labels.csv, row 2: label ")
    assert "is no class: did you mean" in lines[0]
    assert lines[-1].endswith("labels.csv: 14 more like these")
    assert status() == saved
    assert (first / "labels.csv").read_bytes() == typed
    answer(first)
    with monkeypatch.context() as patch:  # the labels are read, and not saved yet
        patch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            sslpl(*command)
    ends: list[int] = []
    monkeypatch.setattr(NoTracker, "finish", lambda _, code, *__: ends.append(code))
    with monkeypatch.context() as patch:  # nothing is asked before what was picked is saved
        patch.setattr(oracles, "write_request", lambda _: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            sslpl(*command)
    saved, _ = checkpoint.load(run_folder() / "checkpoint")
    assert saved is not None
    assert saved["position"][:2] == (0, "label")
    assert len(saved["selection"][0]) == MORE
    assert sslpl(*command, "runtime.progress=plain").out.startswith("resumed at cycle 1, label")
    assert ends == [0]
    answer(run_folder() / "labeling" / "cycle1")
    (first / "labels.csv").unlink()  # it has been read
    assert sslpl(*command).code == 0
    assert status()["state"] == "finished"
    assert len(read(run_folder() / "queries.csv")) == FIRST + MORE


def test_parts_of_batches_and_new_classes(sslpl: Command) -> None:
    command = (*QUICK, *FILES, "method=random", "training.warm_start=true", "budget.cycles=3")
    # Raw weights and the members of an ensemble wait for the next training.
    command = (*command, "task_ssl=pseudo_label", "query=ensemble", "query.scorer.members=2")
    sslpl(*command)
    cycle0, cycle1, cycle2 = (run_folder() / "labeling" / f"cycle{k}" for k in range(3))
    answer(cycle0, labels=lambda path: truth(path) if int(path[-7:-4]) % 2 else "")
    first = sum(int(row["path"][-7:-4]) % 2 for row in read(cycle0 / "to_label.csv"))
    assert sslpl(*command).code == 2
    loose = (*command, "oracle.partial=true", "oracle.new_classes=true")  # of the same run
    assert sslpl(*loose).code == 0
    paths = answer(cycle1)
    (cycle1 / "labels.csv").write_text(f"path,label\n{paths[0]},ten\n{paths[1]},eleven\n")
    assert sslpl(*loose).code == 0  # reads a checkpoint with twelve classes in its next process
    assert "ten" in (cycle2 / "label_studio.xml").read_text()
    assert {row["path"] for row in read(cycle2 / "to_label.csv")}.isdisjoint(paths[:2])
    answer(cycle2, labels=lambda _: "eleven")
    assert sslpl(*loose).code == 0
    assert [int(row["labeled"]) for row in timeless(run_folder())] == [first, first + 2, first + 2 + MORE]
    assert [row["label"] for row in read(run_folder() / "queries.csv")[first:]] == ["10", "11", *["11"] * MORE]
    assert [row["class"] for row in read(run_folder() / "labeling" / "classes.csv")] == [*NAMES, "ten", "eleven"]
    weights = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
    assert weights["head.weight"].shape[0] == weights["head.bias"].shape[0] == 12


def test_a_grown_network_keeps_what_it_knows() -> None:
    old, fresh = (small_cnn(num_classes=classes, in_channels=1) for classes in (3, 5))
    rows = fresh.head.weight[3:].clone()
    images = torch.randn(4, 1, 8, 8)
    after = grow_head(old.state_dict(), fresh)
    for name, tensor in old.state_dict().items():
        grown = after.state_dict()[name]
        assert torch.equal(grown[:3] if name.startswith("head.") else grown, tensor)
    # A product with five rows may add in another order than one with three.
    assert torch.allclose(after.eval()(images).logits[:, :3], old.eval()(images).logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(after.head.weight[3:], rows)  # type: ignore[union-attr, index]


def test_a_sweep_goes_on_while_runs_wait(sslpl: Command) -> None:
    command = ("-m", *QUICK, FILES[0], "method=random", "budget.cycles=1", "oracle=file,simulated")
    done = sslpl(*command)
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith("1 waiting, 1 finished")
    assert done.out.count("waiting for the labels of 24 images") == 2  # as it happens, and in the table
    (waiting,) = Path("outputs").glob("**/labeling/cycle0")
    answer(waiting)
    assert sslpl(*command).out.rstrip().endswith("1 resumed, 1 skipped")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["oracle=file", "dataset.label_noise=0.1"], "dataset.label_noise=0.1: must be 0.0 with oracle=file"),
        (["oracle=browser", "dataset.open_set=0.3"], "dataset.open_set=0.3: must be 0.0 with oracle=browser"),
        (["oracle=file", "dataset.imbalance=stepped", "dataset.imbalance_ratio=2"], "imbalance=stepped: must be none"),
        (["oracle=file", "budget.initial_pool=balanced"], "initial_pool=balanced: must be random or query with"),
        (["oracle=file", "method=random", "query=class_balanced_random", "query.oracle_baseline=true"],
         "query.oracle_baseline=true: must be false with oracle=file"),
        (["oracle=browser", "dataset.label_noise=0.1"], "dataset.label_noise=0.1: must be 0.0 with oracle=browser"),
        (["oracle=fil"], "oracle=fil: no such option; did you mean file?"),
        (["oracle=file", "oracle.partial=3"], "oracle.partial=3: must be a valid boolean"),
    ],
)  # fmt: skip
def test_what_needs_all_labels_is_refused(sslpl: Command, overrides: list[str], said: str) -> None:
    done = sslpl(*QUICK, *overrides)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err
    assert not list(Path().iterdir())


def test_a_dry_run_says_that_people_are_asked(sslpl: Command, tmp_path: Path) -> None:
    command = (*QUICK, FILES[0], "runtime.dry_run=true", "method=random")
    done = sslpl(*command, "oracle=file")
    assert "waits for people's labels: 24 images at the start, 2 times 8 more" in done.out
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "known.json").write_text("[1, 2, 5]")
    assert "waits for people's labels: 2 times 8 more" in sslpl(*command, "oracle=file").out


# What is written


def asked(folder: Path, with_paths: bool = True, cycle: int = 1) -> LabelRequest:
    data = photos()
    if not with_paths:
        data = data._replace(paths=())
    picked = Selection(torch.tensor([7, 3, 80]), torch.tensor([2.3125, 0.5, torch.nan], dtype=torch.float64))
    probabilities = torch.full((3, 10), 0.02)
    probabilities[torch.arange(3), torch.tensor([4, 0, 9])] = 0.82
    return LabelRequest(data, folder, cycle, picked, "top of entropy", NAMES, lambda: probabilities)


def test_the_table_says_what_the_model_thinks(tmp_path: Path) -> None:
    rows = read(write_request(asked(tmp_path)) / "to_label.csv")
    assert rows[0] == {
        "path": "unlabeled/scan 007.png", "label": "", "predicted": "four", "probability": "0.8200",
        "score": "2.3125", "reason": "top of entropy: score 2.3125",
    }  # fmt: skip
    assert (rows[2]["score"], rows[2]["reason"]) == ("", "top of entropy")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    write_request(asked(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_request_of_other_images_moves_the_old_one_aside(tmp_path: Path) -> None:
    folder = write_request(asked(tmp_path))
    (folder / "labels.csv").write_text("typed")
    other = asked(tmp_path)
    with pytest.raises(InvalidLabels):
        FileOracle()(other)
    write_request(other._replace(selection=Selection(other.selection.index + 1, other.selection.score)))
    assert (tmp_path / "labeling" / "cycle1-before-1" / "labels.csv").read_text() == "typed"
    assert not (folder / "labels.csv").exists()


def test_images_without_files_are_written_as_pictures(tmp_path: Path) -> None:
    request = asked(tmp_path, with_paths=False)
    with pytest.raises(WaitingForLabels, match="waiting for the labels of 3 images"):
        FileOracle()(request)
    folder = tmp_path / "labeling" / "cycle1"
    assert [row["path"] for row in read(folder / "to_label.csv")] == ["000007.png", "000003.png", "000080.png"]
    pixels = np.asarray(Image.open(folder / "images" / "000003.png"))
    assert pixels.shape == (128, 128)
    assert np.array_equal(pixels[::16, ::16], digits().train.data[3, 0].numpy())  # type: ignore[attr-defined]
    (folder / "labels.csv").write_text("path,label\n000080.png,one\n000003.png,nine\n000007.png,zero\n")
    answers = FileOracle()(request)
    assert answers.label.tolist() == [0, 9, 1]
    assert answers.source == "labeling/cycle1/labels.csv"


def test_the_contact_sheet_shows_every_image(tmp_path: Path) -> None:
    request = asked(tmp_path)
    pixels = torch.zeros(POOL, 3, 40, 20, dtype=torch.uint8)
    for place, position in enumerate(request.selection.index.tolist()):
        pixels[position, place] = 255
    request = request._replace(dataset=request.dataset._replace(train=TensorImages(pixels)))
    sheet = np.asarray(Image.open(write_request(request) / "contact_sheet.png")).astype(int)
    pure = [(sheet == np.eye(3, dtype=int)[channel] * 255).all(axis=2).sum() for channel in range(3)]
    assert all(count == 112 * 56 for count in pure)


def test_a_strategy_is_named_by_its_parts() -> None:
    from functools import partial

    from sslpl.oracle.label_request import strategy_name
    from sslpl.query.score_then_select import score_then_select
    from sslpl.query.scorers import predicted_loss
    from sslpl.query.selectors import top

    strategy = partial(score_then_select, scorer=predicted_loss, selector=partial(top))
    assert strategy_name(strategy) == "top of predicted_loss"
    assert strategy_name(partial(random)) == strategy_name(random) == "random"


# What is accepted, and what is refused

ASKED, KNOWN = ("a/1.png", "a/2.png", "b c/ö.png"), ("cat", "dog", "Käfer")


def labels_of(tmp_path: Path, content: bytes | str, **how: bool) -> tuple[list[int], tuple[str, ...]]:
    file = tmp_path / "labels.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    before = file.read_bytes()
    try:
        return validate_labels(read_table(file), file, ASKED, KNOWN, **({"partial": False, "new_classes": False} | how))
    finally:
        assert file.read_bytes() == before


TABLE = "path,label\na/1.png,cat\na/2.png,dog\nb c/ö.png,Käfer\n"
FORMS: dict[str, bytes | str] = {
    "as it is": TABLE,
    "Windows' line ends": TABLE.replace("\n", "\r\n"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + TABLE.encode(),
    "semicolons": TABLE.replace(",", ";"),
    "semicolons and quotes": '"path";"label"\n"a/1.png";"cat"\n"a/2.png";"dog"\n"b c/ö.png";"Käfer"\n',
    "Excel's first line": "sep=;\r\n" + TABLE.replace(",", ";"),
    "tabs in UTF-16": TABLE.replace(",", "\t").encode("utf-16"),
    "Windows' letters": TABLE.encode("cp1252"),
    "blanks": "path, label\n a/1.png ,  cat\na/2.png,dog  \n\n b c/ö.png,Käfer\n,\n",
    "another order": "label,path\nKäfer,b c/ö.png\ncat,a/1.png\ndog,a/2.png\n",
    "further columns": "path,label,predicted,note\na/1.png,cat,dog,\na/2.png,dog,,\"why, not\"\nb c/ö.png,Käfer\n",
    "capital columns": TABLE.replace("path,label", "Path,LABEL"),
    "backslashes": TABLE.replace("/", "\\"),
    "no last line end": TABLE.rstrip(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_many_programs_are_read(tmp_path: Path, form: str) -> None:
    assert labels_of(tmp_path, FORMS[form]) == ([0, 1, 2], KNOWN)


HEAD = "path,label\n"
MISTAKES: dict[str, tuple[bytes | str, list[str]]] = {
    "an unknown path": (TABLE + "a/3.png,cat\n", ["row 5: path 'a/3.png' was not asked for: did you mean 'a/2.png'?"]),
    "no path": (TABLE + ",cat\n", ["row 5: path '' was not asked for"]),
    "an unknown class": (
        TABLE.replace("dog", "dgo"), ["row 3: label 'dgo' is no class: did you mean 'dog'?; known: cat, dog, Käfer"]
    ),
    "another case": (TABLE.replace("dog", "Dog"), ["row 3: label 'Dog' is no class: did you mean 'dog'?; known: cat"]),
    "doubled": (TABLE + "a/1.png,cat\n", ["row 5: path 'a/1.png' has the same label in row 2: keep one row"]),
    "doubled, otherwise": (TABLE + "a/1.png,dog\n", ["row 5: path 'a/1.png' has another label in row 2: keep one row"]),
    "a missing row": (HEAD + "a/1.png,cat\na/2.png,dog\n", ["labels.csv: path 'b c/ö.png' has no label (oracle"]),
    "an empty label": (TABLE.replace("dog", ""), ["labels.csv, row 3: path 'a/2.png' has no label"]),
    "several": (
        HEAD + "a/1.png,bird\na/9.png,cat\na/2.png,dog\n",
        ["row 2: label 'bird'", "row 3: path 'a/9.png'", "labels.csv: path 'b c/ö.png' has no label"],
    ),
    "other columns": ("file,class\na/1.png,cat\n", ["row 1: must name the columns path and label, once each; has f"]),
    "a column twice": ("path,label,label\na/1.png,cat,dog\n", ["row 1: must name the columns path and label"]),
    "an empty file": ("", ["row 1: must name the columns path and label, once each; has none"]),
    "something else": (b"PK\x03\x04\x00\x01\x02\n\x07", ["row 1: must name the columns path and label"]),
    "undecodable": (b"PK\x81\x8d", ["cannot be read"]),
    "an open quote": (HEAD + '"a/1.png,cat\n', ["row 1: must name the columns path and label"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line(tmp_path: Path, mistake: str) -> None:
    content, expected = MISTAKES[mistake]
    with pytest.raises(InvalidLabels) as refused:
        labels_of(tmp_path, content)
    assert len(refused.value.args) == len(expected)
    for problem, part in zip(refused.value.args, expected, strict=True):
        assert problem.startswith(str(tmp_path / "labels.csv"))
        assert part in problem
        assert "\n" not in problem


def test_parts_and_new_classes_are_accepted_if_asked_for(tmp_path: Path) -> None:
    part = HEAD + "a/2.png,dog\nb c/ö.png,\n"
    assert labels_of(tmp_path, part, partial=True) == ([-1, 1, -1], KNOWN)
    with pytest.raises(InvalidLabels, match="must hold at least one label, has none"):
        labels_of(tmp_path, HEAD + "a/2.png,\n", partial=True)
    new = HEAD + "b c/ö.png,owl\na/1.png,bat\na/2.png,owl\n"
    assert labels_of(tmp_path, new, new_classes=True) == ([4, 3, 3], (*KNOWN, "owl", "bat"))
    with pytest.raises(InvalidLabels, match="label 'Cat' is no class: did you mean 'cat'"):
        labels_of(tmp_path, TABLE.replace("cat", "Cat"), new_classes=True)


def test_many_mistakes_take_no_time_and_ten_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(HEAD + "".join(f"x/{n}.jpg,cat\n" for n in range(5000)))
    with pytest.raises(InvalidLabels) as refused:
        validate_labels(read_table(file), file, [f"y/{n}.png" for n in range(5000)], KNOWN, False, False)
    assert len(refused.value.args) == 11
    assert refused.value.args[-1] == f"{file}: 9,990 more like these"


# Label Studio

NAMES_WITH_SIGNS = ("cat & dog", 'the "<owl>"', "größe")
PATHS = ("a b/1&2=3.png", "ü/100%.png", "c#d+e.png", "4.png")


@pytest.fixture
def imported() -> list[dict[str, Any]]:
    guesses = [("cat & dog", 0.91234567), None, ("größe", 1.0), ('the "<owl>"', 0.5)]
    return valid_tasks(tasks(PATHS, PATHS, guesses), interface(NAMES_WITH_SIGNS), NAMES_WITH_SIGNS)


def export(tmp_path: Path, content: Any) -> list[tuple[str, str]]:
    file = tmp_path / "label_studio_export.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return [(row.path, row.label) for row in export_rows(file)]


def test_label_studio_gives_back_what_it_was_given(tmp_path: Path, imported: list[dict[str, Any]]) -> None:
    one, two, three, four = imported
    whole = [
        annotated(one, "cat & dog", "größe"),  # the last word of one person
        annotated(two, "größe", 'the "<owl>"', cancelled=0),
        annotated(three, "größe", "größe", by=({"id": 1, "email": "a@b"}, {"id": 2})),
        annotated(four, "größe", cancelled=0),
    ]
    expected = [*zip(PATHS, ("cat & dog", 'the "<owl>"', "größe", ""), strict=True)]
    assert export(tmp_path, whole) == expected
    small = [record for task in whole for record in minimal(task)]
    assert [record["label"] for record in small] == ["cat & dog", "größe", 'the "<owl>"', "größe", "größe"]
    assert export(tmp_path, small) == expected[:3]  # a skipped task has no record
    small[2]["label"] = ['the "<owl>"']  # several results of the control, which hold one
    assert export(tmp_path, small) == expected[:3]
    for record in (*small, *(task["data"] for task in whole)):
        del record["path"]  # as when another tool has made the tasks
    assert export(tmp_path, small) == expected[:3]
    assert export(tmp_path, whole) == expected
    later = small[0] | {"label": "z", "updated_at": "2027"}
    assert export(tmp_path, [later, *small])[0] == (PATHS[0], "z")


def test_another_question_of_the_interface_is_no_label(tmp_path: Path, imported: list[dict[str, Any]]) -> None:
    task = annotated(imported[0], "größe")
    (label,) = task["annotations"][0]["result"]
    task["annotations"][0]["result"].append(label | {"from_name": "quality", "value": {"choices": ["blurred"]}})
    assert export(tmp_path, [task]) == [(PATHS[0], "größe")]
    assert export(tmp_path, [*minimal(task)]) == [(PATHS[0], "größe")]


def test_exports_with_mistakes_are_refused(tmp_path: Path, imported: list[dict[str, Any]]) -> None:
    two = annotated(imported[1], "größe")
    two["annotations"][0]["result"][0]["value"]["choices"] = ["größe", "cat & dog"]
    other = annotated(imported[2], "größe")
    other["annotations"][0]["result"][0]["from_name"] = "quality"
    for content, said in (
        ("{", "cannot be read as JSON"),
        ({"a": 1}, "must be an export of Label Studio, JSON or JSON-MIN: a list of tasks"),
        ([{"id": 3}], "task 3: must be a task with `data` and `annotations`"),
        ([annotated(imported[0], "größe", "cat & dog", by=(1, 2))], "task 51: 'a b/1&2=3.png' has 2 labels by differ"),
        ([two], "task 52: must have one class, has 2: größe, cat & dog"),
        ([*minimal(two)], "task 52: must have one class, has 2: größe, cat & dog"),
        ([other], "task 53: must be answered in the control label of label_studio.xml, not in quality"),
    ):
        with pytest.raises(InvalidLabels, match=r"label_studio_export\.json") as refused:
            export(tmp_path, content)
        (line,) = refused.value.args
        assert said in line


def test_two_files_of_labels_are_one_too_many(tmp_path: Path) -> None:
    request = asked(tmp_path)
    folder = write_request(request)
    imported = json.loads((folder / "label_studio.json").read_text())
    (folder / "label_studio_export.json").write_text(json.dumps([annotated(task, "six") for task in imported]))
    assert FileOracle()(request).label.tolist() == [6, 6, 6]
    answer(folder)
    with pytest.raises(InvalidLabels, match="has both"):
        FileOracle()(request)


# Figures that need hidden labels


def test_figures_that_need_hidden_labels_are_left_empty() -> None:
    target, weight = torch.eye(3), torch.tensor([1.0, 1.0, 0.0])
    right = pseudo_label_counts(target, weight, torch.tensor([0, 2, 2])).sum(dim=0)
    assert pseudo_label_quality(FinetuneSums(*torch.cat([torch.zeros(3), right]).tolist())) == {
        "pseudo_label_rate": pytest.approx(2 / 3), "pseudo_label_accuracy": 0.5,
    }  # fmt: skip
    unknown = pseudo_label_counts(target, weight, torch.tensor([0, 2, -1])).sum(dim=0)
    quality = pseudo_label_quality(FinetuneSums(*torch.cat([torch.zeros(3), unknown]).tolist()))
    assert quality["pseudo_label_accuracy"] is None
    assert quality["pseudo_label_rate"] == pytest.approx(2 / 3)
    said = Predictions(torch.arange(3), torch.randn(3, 3), torch.randn(3, 2), torch.tensor([0.1, 0.2, 0.3]))
    assert loss_rank_correlation(said, torch.tensor([0, 1, 2])) is not None
    assert loss_rank_correlation(said, torch.tensor([0, 1, -1])) is None


def test_a_simulated_oracle_needs_every_label() -> None:
    data = photos()
    assert SimulatedOracle().prepare(data) is data
    some = data._replace(train_labels=data.train_labels.clone().fill_(-1))
    with pytest.raises(UserError, match=r"90 of 90 images of the pool have no label to tell .*; choose oracle=file"):
        SimulatedOracle().prepare(some)
    assert FileOracle().prepare(some) is some
    assert (FileOracle().prepare(data).train_labels == -1).all()  # a rehearsal
