"""Predictions of new images from a finished run: the command in process, image files of every kind, ONNX."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Result, run_folder
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image
from test_docs import ROOT
from torch import Tensor, nn

from sslpl.data.datasets import digits
from sslpl.data.decoding import ImageFormat, read_image
from sslpl.models.backbone import small_cnn
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.resnet import resnet18
from sslpl.predict import __main__ as main
from sslpl.predict import export, stream
from sslpl.predict.trained import TrainedModel
from sslpl.recording import checkpoint
from sslpl.recording.checkpoint import ModelSignature
from sslpl.run import cli

Predict = Callable[..., Result]
needs_onnx = pytest.mark.skipif(any(find_spec(name) is None for name in export.PACKAGES), reason="needs sslpl[export]")


def finished_run(root: Path, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["run.py", *TINY, "training.precision=float32", *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return run_folder(root / "outputs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the test set of digits as files, in order, in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for position, image in enumerate(digits().test.data):  # type: ignore[attr-defined]
        path = folder / ("a/deep" if position < 200 else "b") / f"{position:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return folder


@pytest.fixture
def predict(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Predict:
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str | Path) -> Result:
        monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Result(code, *capfd.readouterr())

    return typed


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def metrics(run: Path) -> dict[str, str]:
    return table(run / "metrics.csv")[-1]


@pytest.mark.parametrize("options", [(), ("--batch-size", "7", "--threads", "3")])
def test_the_test_set_as_files_is_predicted_as_the_run_did(
    run: Path, photos: Path, predict: Predict, options: tuple[str, ...]
) -> None:
    done = predict(run, photos, "--device", "cpu", *options)
    assert (done.code, done.err) == (0, "")
    assert done.out == "360 of 360 images: predictions/predictions.csv, predictions.npz\n"
    rows, labels = table(Path("predictions/predictions.csv")), digits().test_labels.numpy()
    assert [int(Path(row["path"]).stem) for row in rows] == list(range(360))
    assert rows[0]["path"] == "a/deep/000.png"
    assert np.mean([int(row["class"]) for row in rows] == labels) == float(metrics(run)["test_accuracy"])
    with np.load("predictions/predictions.npz") as arrays:
        logits, probabilities = arrays["logits"], arrays["probabilities"]
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), torch.tensor(labels))
        assert loss.item() == pytest.approx(float(metrics(run)["test_nll"]), rel=1e-6)
        assert arrays["classes"].tolist() == list("0123456789")
        assert arrays["paths"].tolist() == [row["path"] for row in rows]
        assert {arrays[key].dtype for key in arrays if key not in ("paths", "classes")} == {np.dtype("float32")}
        assert (probabilities.shape, arrays["embedding"].shape) == ((360, 10), (360, 256))
        listed = np.array([[float(row[f"p_{name}"]) for name in "0123456789"] for row in rows])
        np.testing.assert_allclose(listed, probabilities, rtol=1e-5)
        assert [row["class"] for row in rows] == [str(guess) for guess in logits.argmax(axis=1)]
        np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(axis=1), rtol=1e-5)
        np.testing.assert_allclose([float(row["predicted_loss"]) for row in rows], arrays["predicted_loss"], rtol=1e-5)


def test_without_a_module_no_loss_is_predicted(photos: Path, predict: Predict, tmp_path: Path) -> None:
    bare = finished_run(tmp_path, "method=random")
    assert predict(bare, photos / "b", "--output", "here").code == 0
    assert {row["predicted_loss"] for row in table(Path("here/predictions.csv"))} == {""}
    with np.load("here/predictions.npz") as arrays:
        assert np.isnan(arrays["predicted_loss"]).all()
        assert len(arrays["predicted_loss"]) == 160


def test_damaged_files_are_named_and_left_out(run: Path, photos: Path, predict: Predict, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    (mixed / "deep").mkdir(parents=True)
    for number in range(9):
        shutil.copy(photos / f"a/deep/00{number}.png", mixed / f"deep/{number}.png")
    (mixed / "deep/3.png").write_bytes((photos / "a/deep/003.png").read_bytes()[:60])
    (mixed / "empty.jpg").touch()
    for ignored in ("notes.txt", ".hidden.png"):
        (mixed / ignored).write_text("no image")
    done = predict(run, mixed, "--batch-size", "2")
    assert done.code == 0
    assert done.out.startswith("8 of 10 images")
    lines = done.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(mixed / "deep/3.png"), str(mixed / "empty.jpg")]
    assert all("cannot be read and is left out (" in line for line in lines)
    names = [row["path"] for row in table(Path("predictions/predictions.csv"))]
    assert names == [f"deep/{number}.png" for number in range(9) if number != 3]
    shutil.rmtree(mixed / "deep")
    done = predict(run, mixed, "--output", "none")
    assert (done.code, len(done.err.splitlines())) == (2, 2)
    assert done.err.endswith("none of its 1 image files can be read\n")
    assert not Path("none").exists()


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def unfinished(run: Path) -> None:
    (run / "status.json").write_text('{"state": "interrupted"}')


def without_weights(run: Path) -> None:
    (run / "checkpoint/weights.pt").unlink()


def flipped(run: Path) -> None:
    path = run / "checkpoint/weights.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(run: Path) -> None:
    path = run / "checkpoint/weights.pt"
    path.write_bytes(path.read_bytes()[:-100])


def of_an_older_version(run: Path) -> None:
    saved = torch.load(run / "checkpoint/weights.pt", weights_only=True)
    del saved["signature"]
    torch.save(saved, run / "checkpoint/weights.pt")


def of_other_networks(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("sslpl.models.small_cnn", "sslpl.models.resnet18"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (unfinished, "not finished (interrupted)"),
        (without_weights, "weights.pt: not there"),
        (flipped, "its checksum does not match"),
        (truncated, "cannot be read (BadZipFile)"),
        (of_an_older_version, "as older versions left it"),
        (of_other_networks, "do not fit the networks of its config.yaml"),
    ],
)
def test_a_run_that_is_of_no_use_is_refused_in_one_line(
    run: Path, photos: Path, predict: Predict, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    broken = copied(run, tmp_path / "broken")
    change(broken)
    done = predict(broken, photos)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert said in done.err
    assert str(broken) in done.err
    assert not Path("predictions").exists()


class Payload:
    """A pickle that runs code when loaded by an unrestricted unpickler."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


LOADING = {"_target_": "torch.load", "f": "payload.pt", "weights_only": False}
THROUGH_US = "sslpl.config.build.torch.load"  # what our modules import is not ours
HOSTILE = {
    "a module": {"module": LOADING},
    "a module that is called later": {"module": LOADING | {"_partial_": True}},
    "a backbone": {"backbone": LOADING},
    "one by way of our own modules": {"module": LOADING | {"_target_": THROUGH_US}},
    "a value": {"backbone": {"_target_": "sslpl.models.small_cnn", "dropout": LOADING}},
    "a value in a list": {"backbone": {"_target_": "sslpl.models.small_cnn", "dropout": [0.1, [LOADING]]}},
    "an argument by position": {"module": {"_target_": "sslpl.models.no_module", "_args_": [LOADING]}},
    "one that is put together": {
        "backbone": {
            "_target_": "sslpl.models.small_cnn",
            "dropout": "\\${oc.create:{_target_:torch.load,f:payload.pt,weights_only:false}}",
        }
    },
    "one that stands elsewhere": {"module": "${else}", "else": LOADING},
    "a target that is none": {"module": {"_target_": LOADING}},
    "a function of ours that is no network": {
        "module": {"_target_": "sslpl.files.write_whole", "path": "marked", "content": "", "_partial_": True}
    },
}


@pytest.mark.parametrize("place", HOSTILE)
def test_code_that_a_run_names_is_not_called(
    run: Path, photos: Path, predict: Predict, tmp_path: Path, place: str
) -> None:
    hostile, mark = copied(run, tmp_path / "hostile"), tmp_path / "marked"
    torch.save(Payload(mark), tmp_path / "payload.pt")
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    (hostile / "config.yaml").write_text(yaml.safe_dump(config | HOSTILE[place]))
    done = predict(hostile, photos)
    assert not mark.exists()
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert f"sslpl: {hostile}/config.yaml: {next(iter(HOSTILE[place]))}" in done.err


MY_NETWORKS = """
import os
from pathlib import Path
from torch import load
from sslpl.models import small_cnn

Path("imported").touch()

def mine(*, num_classes, in_channels, dropout=0.0):
    return small_cnn(num_classes=num_classes, in_channels=in_channels, dropout=dropout)
"""


def test_networks_of_the_users_own_are_built_where_their_package_is_trusted(
    run: Path, photos: Path, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, text = copied(run, tmp_path / "own"), (run / "config.yaml").read_text()
    (own / "config.yaml").write_text(text.replace("sslpl.models.small_cnn", "my_networks.mine"))
    (tmp_path / "my_networks.py").write_text(MY_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    done = predict(own, photos)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "backbone._target_=my_networks.mine: is none of sslpl's networks and is not called" in done.err
    assert "--trust my_networks" in done.err
    assert not Path("imported").exists()
    assert predict(own, photos, "--trust", "my_net").code == 2
    assert predict(own, photos, "--trust", "my_networks").code == 0
    (own / "config.yaml").write_text(text.replace("sslpl.models.small_cnn", "my_networks.load"))
    done = predict(own, photos, "--trust", "my_networks")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "my_networks.load: is defined in torch.serialization, outside of --trust" in done.err


def test_nothing_is_unpickled_without_restrictions() -> None:
    for path in (*(ROOT / "sslpl").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        text = path.read_text()
        assert len(re.findall(r"torch\.load\(", text)) == text.count("weights_only=True"), path
        assert not re.search(
            r"pickle\.loads?\(|allow_pickle|yaml\.(unsafe_)?load\((?!.*(?:LOADER|SafeConfigLoader))", text
        ), path


def test_wrong_folders_and_options_are_refused_in_one_line(
    run: Path, photos: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    for arguments, said in (
        ((run.parent, photos), "no run's folder"),
        ((run, tmp_path / "missing"), "no such folder of images"),
        ((run, tmp_path / "empty"), "no image file in it"),
        ((run, photos, "--output", tmp_path / "file"), "--output"),
        ((run, photos, "--output", tmp_path / "file/below"), "--output"),
        ((run, photos, "--device", "cuda"), "no CUDA device"),
        ((run, photos, "--export"), "pip install onnxruntime"),
    ):
        done = predict(*arguments)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
        assert said in done.err
    assert predict(run, photos, "--batch-size", "0").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_finished_run_keeps_the_signature_of_its_networks(run: Path) -> None:
    assert checkpoint.load_model(run / "checkpoint").signature == ModelSignature(
        tuple("0123456789"), (1, 8, 8), 8, digits().mean, digits().std
    )


# Files of every kind.


def saved(path: Path, values: Any, mode: str | None = None, **options: Any) -> Path:
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def pixels_of(path: Path, shape: tuple[int, int, int], resize: int) -> Tensor:
    return read_image(str(path), ImageFormat(shape[0], resize, shape[1]))


def reference(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy()).permute(2, 0, 1)


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path, pixels: np.ndarray) -> None:
    assert torch.equal(pixels_of(saved(tmp_path / "a.png", pixels), (3, 6, 6), 6), reference(pixels))
    gray = saved(tmp_path / "b.png", pixels[..., 0])
    assert torch.equal(pixels_of(gray, (1, 6, 6), 6)[0], torch.from_numpy(pixels[..., 0].copy()))
    assert torch.equal(pixels_of(gray, (3, 6, 6), 6), reference(pixels[..., :1]).expand(3, -1, -1))
    turned = torch.from_numpy(np.asarray(Image.fromarray(pixels).convert("L")).copy())
    assert torch.equal(pixels_of(tmp_path / "a.png", (1, 6, 6), 6)[0], turned)


@pytest.mark.filterwarnings("error")
def test_every_mode_becomes_eight_bits_a_channel(tmp_path: Path, pixels: np.ndarray) -> None:
    color, shape = reference(pixels), (3, 6, 6)
    opaque = np.dstack([pixels, np.full((6, 6), 255, dtype=np.uint8)])
    assert torch.equal(pixels_of(saved(tmp_path / "rgba.png", opaque), shape, 6), color)
    assert torch.equal(pixels_of(saved(tmp_path / "lossless.webp", pixels, lossless=True), shape, 6), color)
    palette = saved(tmp_path / "palette.png", Image.fromarray(pixels).quantize(64), transparency=bytes([255, 255]))
    assert torch.equal(pixels_of(palette, shape, 6), color)
    deep = pixels[..., 0].astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        assert torch.equal(pixels_of(saved(tmp_path / name, deep), (1, 6, 6), 6)[0], color[0])
    cmyk = pixels_of(saved(tmp_path / "cmyk.tif", pixels, "CMYK"), shape, 6)
    assert torch.equal(cmyk, color)
    assert pixels_of(saved(tmp_path / "bits.png", pixels, "1"), shape, 6).unique().tolist() == [0, 255]


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = saved(tmp_path / "turned.png", pixels[:, :4], exif=exif)
    assert torch.equal(pixels_of(path, (3, 4, 4), 4), reference(np.rot90(pixels[:, :4], -1)[:, 1:5]))


def test_the_center_of_the_scaled_image_is_cut_out(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))  # 60 x 120
    image = pixels_of(saved(tmp_path / "ramp.png", ramp), (1, 20, 20), 30)
    assert image.shape == (1, 20, 20)
    # A pixel is the mean of two columns; the first of the 20 in the middle of 60 starts at column 40.
    assert (image[0].float() - (4.0 * torch.arange(20) + 81)).abs().max() <= 1
    strip = saved(tmp_path / "strip.png", np.zeros((1, 60_000), dtype=np.uint8))
    assert pixels_of(strip, (3, 224, 224), 256).shape == (3, 224, 224)  # 224 x 15,360,000 pixels if scaled whole
    for side in range(5, 80):  # no side is rounded out of the image
        assert pixels_of(saved(tmp_path / "any.png", ramp[:side, :77]), (1, 7, 7), 11).shape == (1, 7, 7)


def test_a_large_photo_looks_the_same_when_decoded_small(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:960, 0:1280]
    smooth = np.stack([rows / 4, columns / 6, (rows + columns) / 10], axis=2).clip(0, 255).astype(np.uint8)
    photo, exact = (saved(tmp_path / name, smooth, quality=95) for name in ("a.jpg", "a.png"))
    gap = pixels_of(photo, (3, 32, 32), 36).float() - pixels_of(exact, (3, 32, 32), 36).float()
    assert gap.abs().max() <= 4


def test_few_images_are_in_memory_at_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def read(path: str, form: ImageFormat) -> Tensor:
        begun.append(Path(path))
        return torch.zeros(form.shape, dtype=torch.uint8)

    monkeypatch.setattr(stream, "read_image", read)
    files = stream.image_files(photos)
    signature = ModelSignature(("a",), (1, 8, 8), 8, (0.5,), (0.5,))
    for number, group in enumerate(stream.image_groups(files, signature, 50, threads=2)):
        assert group.paths == files[50 * number : 50 * (number + 1)]
        assert len(begun) <= 50 * (number + 1 + stream.PREFETCHED)
    assert len(begun) == 360


# ONNX.


def trained(backbone_of: Callable[..., Any], convolutional: bool | None, shape: tuple[int, int, int]) -> TrainedModel:
    """Returns untrained networks whose batch norms are not the identity."""
    torch.manual_seed(0)
    backbone = backbone_of(num_classes=5, in_channels=shape[0])
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 2.0)
    module = None if convolutional is None else LossPredictionModule(backbone.channels, convolutional)
    return TrainedModel(
        backbone, module, ModelSignature(tuple("abcde"), shape, 8, (0.4,) * shape[0], (0.3,) * shape[0])
    )


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    ("backbone_of", "convolutional", "shape"),
    [
        (small_cnn, None, (1, 9, 9)),
        (resnet18, False, (3, 8, 8)),  # with a convolutional module: below, by the command
    ],
)
def test_an_onnx_file_says_what_its_networks_say(
    backbone_of: Callable[..., Any], convolutional: bool | None, shape: tuple[int, int, int]
) -> None:
    import onnxruntime

    networks, images = (
        trained(backbone_of, convolutional, shape),
        torch.randint(0, 256, (5, *shape), dtype=torch.uint8),
    )
    model = export.onnx_model(networks)
    assert export.max_difference(model, networks, images) < 1e-5
    session = onnxruntime.InferenceSession(model)
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "probabilities", "embedding", *([] if convolutional is None else ["predicted_loss"])]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list("abcde")
    changed = next(networks.backbone.parameters())
    with torch.no_grad():
        changed.mul_(1.5)
    assert export.max_difference(model, networks, images) > export.TOLERANCE
    if convolutional is not None:  # the exporter has left nothing of its own in the module
        loss = networks.module(networks.backbone.eval()(torch.rand(2, *shape)).maps)  # type: ignore[misc]
        assert loss.isfinite().all()


@needs_onnx
def test_an_onnx_file_is_kept_only_if_it_agrees(
    run: Path, photos: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = predict(run, photos / "b", "--export")
    assert (done.code, done.err) == (0, "")
    assert "predictions/model.onnx: differs from the networks by" in done.out
    assert Path("predictions/model.onnx").stat().st_size > 100_000
    monkeypatch.setattr(main, "onnx_model", lambda _: b"")
    monkeypatch.setattr(main, "max_difference", lambda *_: float("nan"))
    done = predict(run, photos / "b", "--export")
    assert done.code == 1
    assert "not written" in done.err
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["predictions.csv", "predictions.npz"]

    def fails(_: TrainedModel) -> bytes:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(main, "onnx_model", fails)
    done = predict(run, photos / "b", "--export")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "no such operation" in done.err
