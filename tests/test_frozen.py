"""Frozen backbones embed each image once: the same picks, one computation for all runs, the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result, run_folder, timeless
from hydra.core.global_hydra import GlobalHydra
from layouts import write_image_folder
from test_identity import config_of

from sslpl.config import build, identity
from sslpl.config.frozen import build_embedder, embeds_once
from sslpl.data.augmentation import Augmentation
from sslpl.data.datasets import digits
from sslpl.data.embeddings import embeddings
from sslpl.data.image_fingerprints import images_fingerprint
from sslpl.data.images import TensorImages
from sslpl.data.variants import ImageSubset
from sslpl.embed import __main__ as embed_command
from sslpl.learn import embedding, embedding_files
from sslpl.learn.embedding import Embedder, embedding_key
from sslpl.learn.embedding_files import cached_embeddings, write_embeddings
from sslpl.models.backbone import small_cnn
from sslpl.models.frozen import FrozenBackbone
from sslpl.predict import export
from sslpl.predict.trained import load_trained_run
from sslpl.recording.recorder import Recorder
from sslpl.run import cli
from sslpl.seeds import build_seeded

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
ROOT = Path(__file__).resolve().parents[1]
FROZEN = (*TINY, "backbone.freeze=true", "training.epochs=4", "training.precision=float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network that tells most digits apart."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ("method=random", "budget.initial=400", "budget.cycles=1", "training.epochs=6")
        patch.setattr("sys.argv", ["run.py", *TINY, *options])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return run_folder(folder / "outputs") / "checkpoint" / "weights.pt"


@pytest.fixture
def embed(capfd: pytest.CaptureFixture[str], monkeypatch: Patch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        monkeypatch.setattr("sys.argv", ["embed", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            embed_command.main()
        return Result(int(ended.value.code or 0), *capfd.readouterr())

    return command


def without_shifts(monkeypatch: Patch) -> None:
    """Lets every dataset have crops without padding, so that an augmented image is the image."""
    read = build.read_dataset
    monkeypatch.setattr(build, "read_dataset", lambda *arguments: read(*arguments)._replace(padding=0, flip=False))


def slow(*options: str) -> Any:
    """A parameter that only `make check` tests."""
    return pytest.param(options, marks=pytest.mark.slow)


class TestRuns:
    @pytest.mark.parametrize(
        "options",
        [
            ("method=badge",),
            ("method=margin", "training.warm_start=false", "budget.validation=0.2", "training.checkpoint=best"),
            slow("method=margin"), slow("method=typiclust"), slow("method=query_by_committee"), slow("method=bald"),
            slow("method=temporal_output_discrepancy", "dataset.imbalance=stepped", "dataset.imbalance_ratio=2"),
        ],
    )  # fmt: skip
    def test_a_run_selects_what_one_without_embeddings_selects(
        self, sslpl: Command, weights: Path, monkeypatch: Patch, options: tuple[str, ...]
    ) -> None:
        without_shifts(monkeypatch)
        folders = []
        for augment in ("true", "false"):
            done = sslpl(
                *FROZEN, f"backbone.weights={weights}", *options, f"training.augment={augment}",
                f"runtime.output_dir=augment-{augment}",
            )  # fmt: skip
            assert done.code == 0, done.err
            folders.append(run_folder(Path(f"augment-{augment}")))
        slow, fast = ((folder / "queries.csv").read_text().splitlines() for folder in folders)
        assert [row.split(",")[:3] for row in slow] == [row.split(",")[:3] for row in fast]
        accuracies = [[row["test_accuracy"] for row in timeless(folder)] for folder in folders]
        assert accuracies[0] == accuracies[1]
        assert float(accuracies[1][-1]) > 0.6

    def test_the_runs_of_a_sweep_share_the_embeddings(self, sslpl: Command, weights: Path) -> None:
        command = (*FROZEN, f"backbone.weights={weights}")
        first = sslpl(*command, "method=margin")
        assert first.err.count("images are embedded once") == 2  # pool and test set
        again = sslpl(*command, "method=random", "seed=1", "training=head", "training.augment=false")
        assert (again.code, again.err) == (0, "")
        assert len(list(Path("outputs/.embeddings").glob("*.npy"))) == 2
        assert not list(Path("outputs/.embeddings").glob(".*"))

    def test_a_head_trains_on_a_frozen_backbone_and_images_are_predicted(self, sslpl: Command, weights: Path) -> None:
        options = ("training=head", "method=learning_loss", "budget.initial=100", f"backbone.weights={weights}")
        done = sslpl(*FROZEN, *options)
        assert done.code == 0, done.err
        run = run_folder()
        trained, data = load_trained_run(run), digits()
        assert trained.signature.shape == (1, 8, 8)
        assert trained.signature.mean == data.mean
        normalize = Augmentation((1, 8, 8), data.mean, data.std, flip=False, padding=0, cutout=0).normalize
        with torch.inference_mode():
            features = FrozenBackbone(trained.backbone, bfloat16=False)(normalize(data.test.data))  # type: ignore[attr-defined]
            assert trained.module is not None
            assert trained.module(features.maps).isfinite().all()
        accuracy = (features.logits.argmax(dim=1) == data.test_labels).float().mean().item()
        assert accuracy == pytest.approx(float(timeless(run)[-1]["test_accuracy"]))
        assert accuracy > 0.8
        start = torch.load(weights, weights_only=True)["backbone"]
        saved = torch.load(run / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
        changed = {name for name, value in start.items() if not torch.equal(value, saved[f"network.{name}"])}
        assert changed == {"head.weight", "head.bias"}
        if all(find_spec(name) for name in export.PACKAGES):
            pixels = data.test.data[:9]  # type: ignore[attr-defined]
            assert export.max_difference(export.onnx_model(trained), trained, pixels) < export.TOLERANCE

    def test_a_killed_run_resumes_to_the_same_result(self, sslpl: Command, weights: Path, monkeypatch: Patch) -> None:
        command = (*FROZEN, f"backbone.weights={weights}", "method=badge")
        assert sslpl(*command, "runtime.output_dir=whole").code == 0
        end_phase, calls = Recorder.on_phase_end, []

        def killed(self: Any, state: Any) -> None:
            end_phase(self, state)
            calls.append(state.phase)
            if len(calls) == 6:
                raise KeyboardInterrupt

        monkeypatch.setattr(Recorder, "on_phase_end", killed)
        assert sslpl(*command).code == 130
        assert sslpl(*command).code == 0
        results = [run_folder(Path(name)) / "queries.csv" for name in ("whole", "outputs")]
        assert results[0].read_text() == results[1].read_text()

    def test_people_see_the_images(self, sslpl: Command, weights: Path) -> None:
        command = (*FROZEN, f"backbone.weights={weights}", "method=margin", "oracle=file")
        done = sslpl(*command)
        assert "waiting for the labels of 24 images" in done.out, done.err
        (table,) = Path().glob("outputs/**/to_label.csv")
        assert len(list((table.parent / "images").glob("*.png"))) == 24
        assert (table.parent / "contact_sheet.png").exists()
        labels = digits().train_labels
        rows = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
        content = [f"{name},{labels[int(name.removesuffix('.png'))]}" for name in rows]
        (table.parent / "labels.csv").write_text("\n".join(["path,label", *content]))
        assert "waiting for the labels of 24 images" in sslpl(*command).out
        assert len(list((table.parents[1] / "cycle1" / "images").glob("*.png"))) == 24

    def test_embeddings_and_head_of_a_run_in_bfloat16(self, sslpl: Command, weights: Path) -> None:
        command = (*FROZEN, f"backbone.weights={weights}", "method=learning_loss", "training.precision=bfloat16")
        done = sslpl(*command)
        assert done.code == 0, done.err
        assert float(timeless(run_folder())[-1]["test_accuracy"]) > 0.6

    def test_images_of_files_are_read_a_single_time(self, sslpl: Command, tmp_path: Path) -> None:
        write_image_folder(tmp_path / "files", 90, 12, np.random.default_rng(0))
        command = (
            *FROZEN, "method=margin", "dataset=image_folder", f"dataset.root={tmp_path / 'files'}", "dataset.size=10",
            "dataset.resize=12", "budget.candidates=30",
        )  # fmt: skip
        assert sslpl(*command).err.count("images are embedded once") == 2
        again = sslpl(*command, "training.epochs=3")
        assert (again.code, again.err) == (0, "")

    def test_a_dry_run_writes_nothing(self, sslpl: Command) -> None:
        done = sslpl(*FROZEN, "method=margin", "runtime.dry_run=true")
        assert done.code == 0, done.err
        assert "1,437 images would be embedded once, in about" in done.err
        assert "estimated time" in done.out
        assert not Path("outputs").exists()

    @pytest.mark.slow
    def test_two_processes_train_on_what_the_first_embeds(self, weights: Path, tmp_path: Path) -> None:
        command = [*FROZEN, f"backbone.weights={weights}", "method=margin", "budget.cycles=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*launcher, str(ROOT / "run.py"), *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("images are embedded once") == 2
        assert len((run_folder(tmp_path / "outputs") / "queries.csv").read_text().splitlines()) == 49


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("method=sslpm",),
            "backbone.freeze=true: ssl must be none, because its unlabeled term needs augmented views of images; "
            "set training.augment=true, or method=scal works",
        ),
        (("method=margin", "task_ssl=fixmatch"), "backbone.freeze=true: task_ssl must be none"),
        (
            ("method=vaal",),
            "backbone.freeze=true: query must not be vaal, which needs images; set training.augment=true, or ",
        ),
        (("method=ta_vaal", "ssl=none"), "backbone.freeze=true: query must not be ta_vaal"),
        (
            ("method=margin", "training=head", "training.augment=true"),
            "training=head: backbone must be linear or mlp, or frozen (backbone.freeze=true, training.augment=false)",
        ),
        (
            ("method=margin", "backbone.freeze=false", "training.augment=true"),
            "training.augment=true: must be false unless backbone.freeze=true",
        ),
    ],
)
def test_what_needs_images_is_refused(sslpl: Command, options: tuple[str, ...], message: str) -> None:
    done = sslpl(*FROZEN, *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not Path("outputs").exists()


def test_an_output_folder_that_is_a_file_is_one_line(sslpl: Command, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    done = sslpl(*FROZEN, "method=margin")
    assert done.code == 2
    assert done.err.startswith("sslpl: runtime.output_dir=outputs: cannot be written")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("backbone.freeze=true", "training.augment=true"), "a2c61d092bf5"),
        (("method=scal", "seed=1", "backbone.freeze=true", "training.augment=true"), "e1a3ca69713d"),
    ],
)
def test_augmented_runs_keep_the_ids_that_they_had_before_the_key(options: tuple[str, ...], expected: str) -> None:
    config, _ = config_of(*options)
    assert identity.run_id(config) == expected
    without = config | {"training": config["training"] | {"augment": False}}
    assert identity.run_id(without) != expected
    assert identity.setting_id(without) != identity.setting_id(config)


def test_a_run_that_is_older_than_the_key_was_augmented() -> None:
    config, _ = config_of("backbone.freeze=true", "method=scal")
    assert embeds_once(config)
    old = {key: value for key, value in config["training"].items() if key != "augment"}
    assert not embeds_once(config | {"training": old})


def embedder(seed: int = 0, **changes: Any) -> Embedder:
    network = build_seeded(lambda: small_cnn(num_classes=10, in_channels=1), seed, "network").eval()
    node = {"_target_": "sslpl.models.small_cnn", "dropout": 0.0, "freeze": True, "weights": "a.pt"}
    return build_embedder(node, network, digits()._replace(**changes), torch.device("cpu"), bfloat16=False)


def images(count: int = 600) -> TensorImages:
    return TensorImages(digits().train.data[:count])  # type: ignore[attr-defined]


def killed_at_batch(number: int, monkeypatch: Patch) -> list[int]:
    """Interrupts, once, the embedding of a batch; returns the sizes of the batches that are embedded from now on."""
    embed_batch, sizes, interrupted = embedding.embed_batch, [], []

    def counted(*arguments: Any) -> Any:
        if len(sizes) == number and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        sizes.append(len(arguments[2]))
        return embed_batch(*arguments)

    monkeypatch.setattr(embedding, "embed_batch", counted)
    return sizes


class TestCache:
    def test_the_rows_are_the_embeddings(self, tmp_path: Path) -> None:
        using, pool = embedder(), images()
        rows = cached_embeddings(tmp_path, using, pool)
        with torch.inference_mode():
            expected = using.network.network(using.normalize(pool.data)).embedding
        torch.testing.assert_close(rows, expected)

    def test_the_key_is_that_of_weights_images_preprocessing_and_precision(self) -> None:
        using, pool = embedder(), images()
        key = embedding_key(using, pool)
        with torch.no_grad():
            embedder_of_other_head = embedder()
            embedder_of_other_head.network.head.weight.zero_()  # type: ignore[operator]
        same = [(embedder(), images()), (embedder_of_other_head, images())]
        other_pixel = images()
        other_pixel.data = other_pixel.data.clone()
        other_pixel.data[5, 0, 3, 3] += 1
        different = [
            (embedder(seed=1), pool), (embedder(mean=(0.5,)), pool), (embedder(std=(0.5,)), pool),
            (using._replace(bfloat16=True), pool), (using._replace(architecture="{}"), pool),
            (using, images(599)), (using, other_pixel),
        ]  # fmt: skip
        assert {embedding_key(*pair) for pair in same} == {key}
        assert len({key, *(embedding_key(*pair) for pair in different)}) == 1 + len(different)

    def test_a_subset_is_identified_by_its_positions(self) -> None:
        pool = images()
        index = torch.arange(0, 600, 2)
        keys = {images_fingerprint(ImageSubset(pool, positions)) for positions in (index, index + 1, index[:-1])}
        assert len(keys) == 3
        assert images_fingerprint(ImageSubset(pool, index.clone())) in keys

    def test_a_killed_computation_goes_on_where_it_stopped(self, tmp_path: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(embedding_files, "SAVE_SECONDS", 0.0)
        using, pool = embedder(), images()
        whole = cached_embeddings(tmp_path / "whole", using, pool)
        sizes = killed_at_batch(2, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            cached_embeddings(tmp_path, using, pool)
        assert not list(tmp_path.glob("*.npy"))  # nothing counts as finished
        assert torch.equal(cached_embeddings(tmp_path, using, pool), whole)
        assert sizes == [256, 256, 600 - 2 * 256]

    def test_another_network_does_not_continue_what_was_killed(self, tmp_path: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(embedding_files, "SAVE_SECONDS", 0.0)
        path, done = tmp_path / "rows.npy", []

        def stop(rows: int, total: int) -> None:
            done.append(rows)
            if rows == 256:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_embeddings(path, embedder(), images(), "first", stop)
        write_embeddings(path, embedder(seed=1), images(), "second", lambda rows, _: done.append(rows))
        assert done == [0, 256, 0, 256, 512, 600]
        torch.testing.assert_close(
            torch.from_numpy(np.load(path)), cached_embeddings(tmp_path, embedder(seed=1), images())
        )

    @pytest.mark.parametrize("damage", ["truncated", "overwritten", "no record"])
    def test_damage_is_computed_again(self, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
        rows = cached_embeddings(tmp_path, embedder(), images()).clone()
        (file,) = tmp_path.glob("*.npy")
        content = file.read_bytes()
        if damage == "truncated":
            file.write_bytes(content[:-100])
        elif damage == "overwritten":
            file.write_bytes(content[:-100] + bytes(100))
        else:
            file.with_suffix(".json").write_text("{")
        capfd.readouterr()
        assert torch.equal(cached_embeddings(tmp_path, embedder(), images()), rows)
        error = capfd.readouterr().err
        assert f"{file} is damaged: it is computed again" in error
        assert "600 images are embedded once" in error
        cached_embeddings(tmp_path, embedder(), images())
        assert capfd.readouterr().err == ""

    def test_one_of_several_computes(self, tmp_path: Path, monkeypatch: Patch) -> None:
        write, calls = embedding_files.write_finished, []

        def counted(*arguments: Any) -> None:
            calls.append(arguments[0])
            write(*arguments)

        monkeypatch.setattr(embedding_files, "write_finished", counted)
        with ThreadPoolExecutor(4) as threads:
            tasks = [threads.submit(cached_embeddings, tmp_path, embedder(), images()) for _ in range(4)]
            rows = [task.result() for task in tasks]
        assert len(calls) == 1
        assert all(torch.equal(other, rows[0]) for other in rows)

    def test_an_embedding_that_is_not_finite_is_one_line(self, tmp_path: Path) -> None:
        using = embedder()
        with torch.no_grad():
            next(using.network.parameters()).fill_(torch.nan)
        with pytest.raises(ValueError, match="its embedding of image 0 is not finite"):
            cached_embeddings(tmp_path, using, images())


class TestCommand:
    @pytest.mark.parametrize("name", ["digits.npz", "digits"])
    def test_its_output_is_a_dataset(self, embed: Command, weights: Path, name: str) -> None:
        command = (f"backbone.weights={weights}", "runtime.progress=none", "--output", name)
        done = embed(*command)
        assert done.code == 0, done.err
        assert f"use it: python run.py experiment=embeddings dataset.file={name}" in done.out
        assert [path.name for path in Path().iterdir()] == [name]
        data, expected = embeddings(name, scaling="none"), digits()
        network = small_cnn(num_classes=10, in_channels=1).eval()
        network.load_state_dict(torch.load(weights, weights_only=True)["backbone"])
        normalize = Augmentation((1, 8, 8), expected.mean, expected.std, flip=False, padding=0, cutout=0).normalize
        for part in ("train", "test"):
            (rows,) = getattr(data, part).batches([torch.arange(len(getattr(data, part)))])
            with torch.inference_mode():
                torch.testing.assert_close(rows.flatten(1), network(normalize(getattr(expected, part).data)).embedding)
        assert torch.equal(data.train_labels, expected.train_labels)
        assert torch.equal(data.test_labels, expected.test_labels)
        assert data.class_names == expected.class_names
        again = embed(*command)
        assert again.out.startswith(f"finished already: {name}: 1,437 and 360 embeddings of 256 dimensions")
        other = embed(*command, "dataset.label_noise=0.1")
        assert (other.code, other.err) == (
            2, f"sslpl: --output {name}: has other content; remove it, or choose another name\n"
        )  # fmt: skip

    def test_it_goes_on_after_a_kill(self, embed: Command, weights: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(embedding_files, "SAVE_SECONDS", 0.0)
        command = (f"backbone.weights={weights}", "runtime.progress=none", "--output", "digits.npz")
        assert embed(*command, "--output", "whole.npz").code == 0
        sizes = killed_at_batch(7, monkeypatch)  # in the test set
        assert embed(*command).code == 130
        assert not Path("digits.npz").exists()
        assert embed(*command).code == 0
        assert sum(sizes) == 1437 + 360
        whole, resumed = (np.load(name) for name in ("whole.npz", "digits.npz"))
        assert sorted(whole.files) == sorted(resumed.files)
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole.files)

    def test_files_keep_their_names(self, embed: Command, weights: Path, tmp_path: Path) -> None:
        write_image_folder(tmp_path / "files", 9, 3, np.random.default_rng(0))
        dataset = ("dataset=image_folder", f"dataset.root={tmp_path / 'files'}", "dataset.channels=1")
        sizes = ("dataset.size=10", "dataset.resize=12", f"backbone.weights={weights}")
        done = embed(*dataset, *sizes, "--output=out")
        assert done.code == 0, done.err
        data = embeddings("out")
        assert data.paths == tuple(f"train/class_{number % 3}/{number}.png" for number in (0, 3, 6, 1, 4, 7, 2, 5, 8))
        assert "embedding train" in done.out
        assert json.loads(str(np.load("out/source.npy")))["backbone"]["_target_"] == "sslpl.models.small_cnn"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--output", "a.npz"), "backbone.weights=null: must be imagenet or a file of weights"),
            (("backbone.weights=WEIGHTS",), "--output: must be given"),
            (("backbone.weights=WEIGHTS", "--output", "a.npy"), "--output a.npy: must end in .npz, or be the name of"),
            (("backbone.weights=WEIGHTS", "--output", "file/a"), "--output file/a: cannot be written"),
            (("dataset=embeddings", "--output", "a"), "dataset=embeddings: must be a dataset of images"),
            (("trainning.epochs=3", "--output", "a"), "trainning.epochs=3"),
            (("seed=-1", "--output", "a"), "seed=-1: must be"),
        ],
    )
    def test_mistakes_are_one_line(
        self, embed: Command, weights: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        Path("file").write_text("")
        done = embed(*(argument.replace("WEIGHTS", str(weights)) for argument in arguments))
        assert done.code == 2
        assert message in done.err
        assert len(done.err.strip().splitlines()) == 1
        assert [path.name for path in Path().iterdir()] == ["file"]

    def test_a_network_of_timm(self, embed: Command, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm")
        name = "mobilenetv3_small_050"
        network = timm.create_model(name, in_chans=1)
        torch.save(network.state_dict(), tmp_path / "timm.pt")
        done = embed("backbone=timm", f"backbone.name={name}", "backbone.weights=timm.pt", "--output", "out")
        assert done.code == 0, done.err
        assert np.load("out/train.npy").shape == (1437, 1024)


@pytest.mark.parametrize(("groups", "expected"), [(1, True), (4, False)])
def test_precision_auto_is_reproducible_on_a_cpu(groups: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_bfloat16", lambda _: True)
    network, cpu = torch.nn.Conv2d(4, 4, 3, groups=groups), torch.device("cpu")
    assert build.uses_bfloat16("auto", cpu, network) is expected
    assert build.uses_bfloat16("auto", torch.device("cuda"), network)
    assert build.uses_bfloat16("bfloat16", cpu, network)
    assert not build.uses_bfloat16("float32", cpu, network)
