"""Embeddings as a dataset: the three formats, what is refused, and runs on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, run_folder, timeless
from numpy.typing import NDArray

from sslpl.data.embedding_arrays import embeddings_fingerprint
from sslpl.data.embeddings import embeddings
from sslpl.types import UserError

Arrays = dict[str, NDArray[Any]]
Command = Callable[..., Result]
CLASSES, WIDTH = 3, 8
QUICK = (
    *("budget.initial=12", "budget.per_cycle=6", "budget.cycles=3", "budget.candidates=30", "tracker=none"),
    *("runtime.num_threads=1", "runtime.progress=none", "training.steps=20"),
)


def blobs(rows: int = 90, seed: int = 0) -> Arrays:
    """Three classes of vectors, of which most can be told apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    vectors = generator.normal(size=(rows, WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[labels]
    train = rows * 2 // 3
    return {
        "train": vectors[:train].astype(np.float32), "train_labels": labels[:train],
        "test": vectors[train:].astype(np.float32), "test_labels": labels[train:],
    }  # fmt: skip


def write_npz(folder: Path, arrays: Arrays) -> str:
    np.savez(folder / "vectors.npz", **arrays)
    return str(folder / "vectors.npz")


def write_folder(folder: Path, arrays: Arrays) -> str:
    (folder / "vectors").mkdir()
    for name, array in arrays.items():
        np.save(folder / "vectors" / f"{name}.npy", array)
    return str(folder / "vectors")


def write_parquet(folder: Path, arrays: Arrays) -> str:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    split = ["train"] * len(arrays["train"]) + ["test"] * len(arrays["test"])
    labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]]).tolist()
    columns = {
        "embedding": [*arrays["train"], *arrays["test"]],
        "label": [None if label < 0 else label for label in labels],
        "split": split,
    }
    parquet.write_table(pa.table(columns), folder / "vectors.parquet")
    return str(folder / "vectors.parquet")


WRITERS = [write_npz, write_folder, write_parquet]


def rows_of(images: Any) -> torch.Tensor:
    (batch,) = images.batches([torch.arange(len(images))])
    return batch.flatten(1)


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_dataset(tmp_path: Path, write: Callable[[Path, Arrays], str]) -> None:
    arrays = blobs()
    arrays["train_labels"][5] = -1
    data = embeddings(write(tmp_path, arrays), scaling="none")
    assert torch.equal(rows_of(data.train), torch.from_numpy(arrays["train"]))
    assert torch.equal(rows_of(data.test), torch.from_numpy(arrays["test"]))
    assert data.train_labels.tolist() == arrays["train_labels"].tolist()
    assert data.test_labels.tolist() == arrays["test_labels"].tolist()
    assert (data.class_names, data.train.shape) == (("0", "1", "2"), (WIDTH, 1, 1))
    assert data.paths[:2] == ("000000", "000001")


def test_text_labels_of_a_parquet_file_are_class_names(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "embedding": [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]],
        "label": ["dog", None, "cat"],
        "split": ["train", "train", "test"],
        "path": ["a.wav", "b.wav", "c.wav"],
    }
    parquet.write_table(pa.table(columns), tmp_path / "sounds.parquet")
    data = embeddings(str(tmp_path / "sounds.parquet"))
    assert (data.class_names, data.paths) == (("cat", "dog"), ("a.wav", "b.wav"))
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([1, -1], [0])


def test_scalings(tmp_path: Path) -> None:
    arrays = blobs()
    arrays["train"][:, 3] = 7.0  # a constant dimension
    file = write_npz(tmp_path, arrays)
    standardized = rows_of(embeddings(file, scaling="standardize").train)
    others = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized[:, others].std(dim=0, correction=0), torch.ones(7))
    normalized = rows_of(embeddings(file, scaling="normalize").test)
    centered = torch.from_numpy(arrays["test"] - arrays["train"].mean(axis=0))
    expected = centered / centered.norm(dim=1, keepdim=True) * WIDTH**0.5
    torch.testing.assert_close(normalized, expected)


def test_float16_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    arrays = blobs()
    arrays |= {part: arrays[part].astype(np.float16) for part in ("train", "test")}
    data = embeddings(write_npz(tmp_path, arrays), scaling="none")
    assert data.train.rows.dtype == torch.float16  # type: ignore[attr-defined]
    assert rows_of(data.train).dtype == torch.float32


def changed(**arrays: Any) -> Arrays:
    return blobs() | {name: np.asarray(array) for name, array in arrays.items()}


TRAIN, LABELS = blobs()["train"], blobs()["train_labels"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(train=TRAIN[:, :5]), "train and test must have the same dimensions, not 5 and 8"),
        (changed(train=TRAIN.astype(int)), "train must be float16 or float32 [rows, dimensions], not int64 [60, 8]"),
        (changed(train=TRAIN[:, 0]), "train must be float16 or float32 [rows, dimensions], not float32 [60]"),
        (changed(train=np.where(TRAIN[7] == TRAIN, np.nan, TRAIN)), "train must be finite, row 7 is not"),
        (changed(train_labels=LABELS[:9]), "train_labels must be integers [60], not int64 [9]"),
        (changed(train_labels=LABELS * 1.0), "train_labels must be integers [60], not float64 [60]"),
        (changed(train_labels=LABELS - 2), "labels must be at least 0, or -1 for an unlabeled row of train"),
        (changed(train_labels=LABELS * 2), "labels must be 0 to 4 without gaps; no row has 3"),
        (changed(test_labels=blobs()["test_labels"] * 0 - 1), "labels must be at least 0, or -1"),
        (changed(class_names=["a", "b"]), "class_names must be 3 different names, not 2"),
        (changed(class_names=["a", "b", "a"]), "class_names must be 3 different names"),
        (changed(paths=["a"] * 60), "paths must differ from one another"),
        (changed(paths=["a"]), "paths must name each of 60 rows of train, not [1]"),
        ({"train": TRAIN}, "train_labels, test, test_labels is missing"),
    ],
)
def test_mistakes_in_a_file_are_one_line(tmp_path: Path, arrays: Arrays, message: str) -> None:
    with pytest.raises(UserError) as raised:
        embeddings(write_npz(tmp_path, arrays))
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"dataset.file={tmp_path}")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    for file, message in (("text.npz", "must be .npz, .parquet"), ("missing.npz", "no such file")):
        with pytest.raises(UserError, match=message):
            embeddings(str(tmp_path / file))
    with pytest.raises(UserError, match=r"dataset\.file=null"):
        embeddings()


@pytest.mark.parametrize("write", [write_npz, write_folder])
def test_the_fingerprint_is_that_of_the_content(tmp_path: Path, write: Callable[[Path, Arrays], str]) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    first, again, other = (write(folder, blobs(seed=seed)) for folder, seed in zip(folders, (0, 0, 1), strict=True))
    assert embeddings_fingerprint(first) == embeddings_fingerprint(again) != embeddings_fingerprint(other)


def test_a_run_is_the_same_from_npz_and_mapped_files(sslpl: Command, tmp_path: Path) -> None:
    folders = []
    for number, write in enumerate((write_npz, write_folder)):
        place = tmp_path / f"place{number}"
        place.mkdir()
        output = f"out{number}"
        done = sslpl("experiment=embeddings", f"dataset.file={write(place, blobs())}", "method=badge", *QUICK,
                     f"runtime.output_dir={output}")  # fmt: skip
        assert done.code == 0, done.err
        folders.append(run_folder(Path(output)))
    first, second = folders
    assert first.parts[-3:-1] == ("vectors", "badge")
    assert timeless(first) == timeless(second)
    assert (first / "queries.csv").read_text() == (second / "queries.csv").read_text()
    assert float(timeless(first)[-1]["test_accuracy"]) > 0.6


@pytest.mark.parametrize(
    "options",
    [
        ("method=learning_loss",), ("method=scal",), ("method=learning_loss", "backbone=mlp", "backbone.width=16"),
        ("method=bald", "backbone=mlp", "backbone.width=16", "backbone.dropout=0.3", "training.optimizer=adamw"),
        ("method=query_by_committee", "training.optimizer=adamw"), ("method=ensemble", "training.optimizer=adamw"),
        ("method=ensemble", "query.scorer.members=2", "backbone=mlp", "backbone.width=16"),
        ("method=typiclust",), ("method=core_set",),
        ("method=random", "dataset.imbalance=long_tailed", "dataset.imbalance_ratio=4"),
    ],
)  # fmt: skip
def test_methods_run_on_embeddings_and_repeat_exactly(sslpl: Command, tmp_path: Path, options: tuple[str, ...]) -> None:
    file = write_npz(tmp_path, blobs())
    metrics = []
    for output in ("one", "two"):
        done = sslpl("experiment=embeddings", f"dataset.file={file}", *QUICK, *options, f"runtime.output_dir={output}")
        assert done.code == 0, done.err
        metrics.append(timeless(run_folder(Path(output))))
    assert metrics[0] == metrics[1]


def test_a_head_trains_by_minibatches_too(sslpl: Command, tmp_path: Path) -> None:
    quick = [option for option in QUICK if "steps" not in option]
    done = sslpl("experiment=embeddings", "training=short", "training.epochs=5", "method=entropy", *quick,
                 f"dataset.file={write_npz(tmp_path, blobs())}")  # fmt: skip
    assert done.code == 0, done.err
    assert float(timeless(run_folder())[-1]["test_accuracy"]) > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("method=sslpm",), "dataset=embeddings: ssl must be none"),
        (("method=margin", "task_ssl=fixmatch"), "dataset=embeddings: task_ssl must be none"),
        (("method=vaal",), "dataset=embeddings: query must not be vaal, which needs images"),
        (("method=ta_vaal", "ssl=none"), "dataset=embeddings: query must not be ta_vaal, which needs images"),
        (("method=consistency",), "dataset=embeddings: query.scorer must not be consistency, which needs images"),
        (("backbone=small_cnn", "training=short"), "dataset=embeddings: backbone must be linear or mlp"),
        (("dataset=digits", "backbone=small_cnn"), "training=head: backbone must be linear or mlp"),
        (("method=query_by_committee",), "training.optimizer=lbfgs: must be adamw"),
        (("method=ensemble",), "training.optimizer=lbfgs: must be adamw, because all networks of query.scorer would"),
        (("method=ensemble", "query.scorer.members=1"), "query.scorer.members=1: must be greater than or equal to 2"),
    ],
)
def test_what_needs_images_is_refused_before_anything_runs(
    sslpl: Command, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    file = [] if "dataset=digits" in options else [f"dataset.file={write_npz(tmp_path, blobs())}"]
    done = sslpl("experiment=embeddings", *file, "tracker=none", *options)
    assert done.code != 0
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not Path("outputs").exists()


def test_people_label_rows_by_their_names(sslpl: Command, tmp_path: Path) -> None:
    arrays = blobs() | {"paths": np.array([f"clip-{row}.wav" for row in range(60)])}
    command = ("experiment=embeddings", f"dataset.file={write_npz(tmp_path, arrays)}", "oracle=file", *QUICK)
    assert "waiting for the labels of 12 images" in sslpl(*command).out
    (table,) = Path().glob("outputs/**/labeling/cycle0/to_label.csv")
    assert not list(table.parent.glob("*.png"))
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert all(name.startswith("clip-") for name in names)
    labels = [f"{name},{arrays['train_labels'][int(name[5:-4])]}" for name in names]
    (table.parent / "labels.csv").write_text("\n".join(["path,label", *labels]))
    done = sslpl(*command)
    assert "waiting for the labels of 6 images" in done.out
    assert len((table.parents[1] / "ledger.csv").read_text().splitlines()) == 13


def test_a_linear_head_is_softmax_regression_of_scikit_learn(sslpl: Command, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    arrays = blobs(rows=600)
    file = write_npz(tmp_path, arrays)
    done = sslpl("experiment=embeddings", "method=full", f"dataset.file={file}", "tracker=none",
                 "runtime.progress=none", "training.weight_decay=2.0")  # fmt: skip
    assert done.code == 0, done.err
    weights = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
    data = embeddings(file)
    vectors, labels = rows_of(data.train).numpy(), data.train_labels.numpy()
    model = LogisticRegression(C=0.5, max_iter=1000, tol=1e-8).fit(vectors, labels)
    ours = rows_of(data.test) @ weights["head.weight"].T + weights["head.bias"]
    probabilities = torch.softmax(ours, dim=1).numpy()
    np.testing.assert_allclose(probabilities, model.predict_proba(rows_of(data.test).numpy()), atol=5e-3)
