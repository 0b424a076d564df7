"""The datasets return the content of the published files, and report damaged ones in one line."""

import hashlib
import pickle
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.io import savemat
from sklearn.datasets import load_digits

from sslpl.data import download, folders
from sslpl.data.datasets import cifar10, cifar100, digits, fashion_mnist, svhn
from sslpl.data.folders import caltech101, image_folder
from sslpl.data.images import TensorImages
from sslpl.data.scan import Scan
from sslpl.types import Dataset, UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CONF = Path(__file__).parents[1] / "conf" / "dataset"
READERS = {"digits": digits, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "cifar100": cifar100, "svhn": svhn}
OF_FILES = {"caltech101": caltech101}


def all_images(images: TensorImages) -> np.ndarray:
    (batch,) = images.batches([torch.arange(len(images))])
    return batch.numpy()


def assert_reads(dataset: Dataset, written: layouts.Written) -> None:
    np.testing.assert_array_equal(all_images(dataset.train), written.train_images)
    np.testing.assert_array_equal(dataset.train_labels.numpy(), written.train_labels)
    np.testing.assert_array_equal(all_images(dataset.test), written.test_images)
    np.testing.assert_array_equal(dataset.test_labels.numpy(), written.test_labels)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == torch.int64


def error_line(reader: Callable[[], Dataset]) -> str:
    with pytest.raises(UserError) as caught:
        reader()
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("dataset.root=")
    return line


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Images


def test_batches_follow_the_indices() -> None:
    data = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8)
    images = TensorImages(data)
    assert len(images) == 7
    assert images.shape == (3, 4, 5)
    first, second, empty = images.batches([torch.tensor([6, 0, 0]), torch.tensor([3]), torch.arange(0)])
    assert torch.equal(first, data[[6, 0, 0]])
    assert torch.equal(second, data[[3]])
    assert empty.shape == (0, 3, 4, 5)


def test_a_batch_does_not_share_memory_with_the_images() -> None:
    images = TensorImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    next(images.batches([torch.arange(3)])).fill_(9)
    assert not images.data.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_gpu_from_indices_of_either_device() -> None:
    data = torch.randint(0, 256, (50, 3, 4, 5), dtype=torch.uint8)
    images = TensorImages(data).to("cuda")
    index = torch.randperm(50)
    for batch in images.batches([index, index.cuda()]):
        assert batch.is_cuda
        assert torch.equal(batch.cpu(), data[index])
    for batch in images.to("cpu").batches([index, index.cuda()]):
        assert torch.equal(batch, data[index])


# Digits


def test_digits_are_scikit_learns_split_once_and_for_all() -> None:
    data = digits()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.shape == data.test.shape == (1, 8, 8)
    together = np.concatenate([all_images(data.train), all_images(data.test)]).reshape(-1, 64)
    source = np.array([[round(x * 255 / 16) for x in row] for row in load_digits().data], dtype=np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, source))
    assert (together.min(), together.max()) == (0, 255)
    split = hashlib.sha256(together.tobytes() + data.train_labels.numpy().tobytes()).hexdigest()
    assert split[:16] == "2b8a59b20a2599a2"


def test_digits_are_stratified_and_paired_with_their_labels() -> None:
    data = digits()
    pool, test = torch.bincount(data.train_labels), torch.bincount(data.test_labels)
    assert (test / (pool + test) - 0.2).abs().max() < 0.005
    label_of = {
        bytes(np.rint(x * 255 / 16).astype(np.uint8)): y for x, y in zip(*load_digits(return_X_y=True), strict=True)
    }
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert [label_of[image.tobytes()] for image in all_images(images)] == labels.tolist()


def test_digits_know_their_mean_and_deviation() -> None:
    data = digits()
    pixels = all_images(data.train) / 255
    assert data.mean == pytest.approx((pixels.mean(),), abs=5e-5)
    assert data.std == pytest.approx((pixels.std(),), abs=5e-5)


def test_what_is_derived_from_the_side(tmp_path: Path, rng: np.random.Generator) -> None:
    layouts.write_cifar10(tmp_path, 10, 4, rng)
    layouts.write_fashion_mnist(tmp_path, 10, 4, rng)
    small, gray, color = digits(), fashion_mnist(str(tmp_path)), cifar10(str(tmp_path))
    assert (small.flip, small.cutout, small.padding) == (False, 4, 1)
    assert (gray.flip, gray.cutout, gray.padding) == (True, 16, 3)
    assert (color.flip, color.cutout, color.padding) == (True, 16, 4)
    assert (digits(cutout=0).cutout, digits(cutout=3).cutout, digits(flip=True).flip) == (0, 3, True)


# Published layouts


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_fashion_mnist_pixel_by_pixel(tmp_path: Path, rng: np.random.Generator, gzipped: bool, flat: bool) -> None:
    written = layouts.write_fashion_mnist(tmp_path, 30, 11, rng, gzipped, flat)
    data = fashion_mnist(str(tmp_path), download=False)
    assert_reads(data, written)
    assert data.class_names == tuple(torchvision.datasets.FashionMNIST.classes)
    assert (data.mean, data.std) == ((0.5,), (0.5,))


def test_cifar10_pixel_by_pixel(tmp_path: Path, rng: np.random.Generator) -> None:
    written = layouts.write_cifar10(tmp_path, 35, 11, rng)
    data = cifar10(str(tmp_path), download=False)
    assert_reads(data, written)
    assert (len(data.class_names), data.class_names[0], data.class_names[9]) == (10, "airplane", "truck")
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2023, 0.1994, 0.2010)


def test_cifar100_pixel_by_pixel(tmp_path: Path, rng: np.random.Generator) -> None:
    written = layouts.write_cifar100(tmp_path, 130, 11, rng)
    data = cifar100(str(tmp_path), download=False)
    assert_reads(data, written)
    assert data.class_names[:2] == ("fine_0", "fine_1")
    assert data.mean == (0.5071, 0.4867, 0.4408)
    assert data.std == (0.2675, 0.2565, 0.2761)
    assert_reads(cifar100(str(tmp_path / "cifar-100-python"), download=False), written)


def test_svhn_pixel_by_pixel(tmp_path: Path, rng: np.random.Generator) -> None:
    written = layouts.write_svhn(tmp_path, 35, 11, rng)
    data = svhn(str(tmp_path), download=False)
    assert_reads(data, written)
    assert data.class_names == tuple("0123456789")
    assert (data.mean, data.std) == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
    assert (data.flip, data.cutout, data.padding) == (False, 16, 4)


def test_torchvision_reads_the_same_svhn(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    layouts.write_svhn(tmp_path, 35, 11, rng)
    ours = svhn(str(tmp_path))
    for split, images, labels in (("train", *ours[:2]), ("test", *ours[2:4])):
        theirs = torchvision.datasets.SVHN(tmp_path, split=split)
        np.testing.assert_array_equal(theirs.data, all_images(images))
        assert theirs.labels.tolist() == labels.tolist()


def test_damaged_svhn_files(tmp_path: Path, rng: np.random.Generator) -> None:
    layouts.write_svhn(tmp_path, 35, 11, rng)
    file = tmp_path / "test_32x32.mat"
    good = file.read_bytes()
    images, labels = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
    wrong = (images.astype(float), images[:9], images[..., :3])
    contents = [{"X": images}, {"X": images, "y": labels * 11}, {"X": images, "y": labels * 0}]
    contents += [{"X": some, "y": labels} for some in wrong]
    for content in contents:
        savemat(file, content)
        assert "cannot read" in error_line(partial(svhn, str(tmp_path)))
    for damaged in (b"", good[:-50], b"<html>", b"MATLAB 7.3 MAT-file" + bytes(500)):
        file.write_bytes(damaged)
        assert "test_32x32.mat" in error_line(partial(svhn, str(tmp_path)))


def test_caltech101_is_split_by_its_own_seed(tmp_path: Path, rng: np.random.Generator) -> None:
    layouts.write_caltech101(tmp_path, 240, 40, rng)
    keys = {"resize": 20, "size": 16, "download": False}
    data = caltech101(str(tmp_path), **keys)
    assert (len(data.train), len(data.test)) == (258, 22)  # 280 images, of which 695 / 8677 are the test set's
    assert data.class_names == tuple(f"class_{k:02}" for k in range(10))
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (data.flip, data.cutout, data.padding, data.train.shape) == (True, 16, 4, (3, 16, 16))
    assert [f"class_{label:02}" for label in data.train_labels] == [name[:8] for name in data.paths]
    assert caltech101(str(tmp_path), **keys).paths == data.paths
    other = caltech101(str(tmp_path), **keys, split_seed=1)
    assert (len(other.train), other.paths != data.paths) == (258, True)
    flat = caltech101(str(tmp_path / "caltech101"), **keys)
    assert flat.paths == data.paths


def test_the_whole_of_caltech101_has_the_published_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "101_ObjectCategories").mkdir()
    monkeypatch.setattr(folders, "subfolders", lambda _: ["a", "BACKGROUND_Google"])
    monkeypatch.setattr(folders, "images_below", lambda _, label: [f"{label}/{k}.jpg" for k in range(8677)])
    monkeypatch.setattr(folders, "scan_images", lambda listing, _: Scan(listing, {}, "", lambda: ((), ())))
    data = caltech101(str(tmp_path))
    assert (len(data.train), len(data.test)) == (7982, 695)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "FashionMNIST"])
def test_torchvision_reads_the_same(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    write = {"CIFAR10": layouts.write_cifar10, "CIFAR100": layouts.write_cifar100}
    write.get(name, layouts.write_fashion_mnist)(tmp_path, 120, 7, rng)
    ours = {"CIFAR10": cifar10, "CIFAR100": cifar100, "FashionMNIST": fashion_mnist}[name](str(tmp_path))
    for train, images, labels in ((True, *ours[:2]), (False, *ours[2:4])):
        theirs = getattr(torchvision.datasets, name)(tmp_path, train=train)
        pixels = np.asarray(theirs.data).reshape(len(theirs), *images.shape[1:], -1)
        np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2), all_images(images))
        assert list(map(int, theirs.targets)) == labels.tolist()
        assert tuple(theirs.classes) == ours.class_names


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_batches_pickled_again_by_python_3(tmp_path: Path, rng: np.random.Generator, protocol: int) -> None:
    written = layouts.write_cifar100(tmp_path, 20, 11, rng)
    content = {"data": layouts.cifar_rows(written.train_images), "fine_labels": list(written.train_labels)}
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(content, protocol))
    assert_reads(cifar100(str(tmp_path)), written)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    data = fashion_mnist(str(DEBIAN_FASHION_MNIST), download=False)
    assert (len(data.train), len(data.test), data.train.shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.train_labels[:5].tolist() == [9, 0, 0, 3, 0]
    # Published statistics of the training images.
    pixels = data.train.data.float() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3530, abs=1e-4)


# Wrong files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_truncated_and_damaged_idx_files(tmp_path: Path, rng: np.random.Generator) -> None:
    images, labels = (tmp_path / f"t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    damages = {
        "truncated gzip": lambda: truncate(images.with_name(f"{images.name}.gz")),
        "not gzip": lambda: images.with_name(f"{images.name}.gz").write_bytes(b"<html>"),
        "truncated": lambda: images.write_bytes(layouts.idx(np.zeros((11, 28, 28)))[:-1]),
        "too long": lambda: images.write_bytes(layouts.idx(np.zeros((11, 28, 28))) + b"0"),
        "empty": lambda: images.write_bytes(b""),
        "other size": lambda: images.write_bytes(layouts.idx(np.zeros((11, 32, 32)))),
        "no images": lambda: images.write_bytes(layouts.idx(np.zeros((0, 28, 28)))),
        "other kind": lambda: images.write_bytes(layouts.idx(np.zeros(11))),
        "fewer labels": lambda: labels.write_bytes(layouts.idx(np.zeros(10))),
        "label out of range": lambda: labels.write_bytes(layouts.idx(np.arange(11))),
    }
    for name, damage in damages.items():
        root = tmp_path
        for file in root.iterdir():
            file.unlink()
        layouts.write_fashion_mnist(root, 30, 11, rng, gzipped=True, flat=True)
        damage()
        line = error_line(partial(fashion_mnist, str(root), download=False))
        assert f"cannot read {root}/t10k-" in line, name
        assert "apt install dataset-fashion-mnist" in line
    assert "labels 0 to 10 where 0 to 9 are allowed" in line


def test_truncated_and_damaged_pickles(tmp_path: Path, rng: np.random.Generator) -> None:
    written = layouts.write_cifar10(tmp_path, 35, 11, rng)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    good = file.read_bytes()
    rows, labels = layouts.cifar_rows(written.test_images), [0] * 11
    contents = [good[:-20], b"", b"<html>", bytes(rng.integers(0, 256, 999, dtype=np.uint8))]
    contents += [
        layouts.python2_pickle(content)
        for content in (
            {"data": rows},
            {"labels": labels},
            [rows, labels],
            {"data": rows, "labels": labels[:-1]},
            {"data": rows, "labels": [*labels[:-1], 10]},
            {"data": rows, "labels": [*labels[:-1], -1]},
            {"data": rows, "labels": [*labels[:-1], 1.5]},
            {"data": rows[:, :-1], "labels": labels},
            {"data": rows.astype(np.int32), "labels": labels},
            {"data": rows[:0], "labels": []},
        )
    ]
    for content in contents:
        file.write_bytes(content)
        assert "data_batch_3" in error_line(partial(cifar10, str(tmp_path)))
    file.write_bytes(good)
    assert_reads(cifar10(str(tmp_path)), written)


class Malicious:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    layouts.write_cifar100(tmp_path, 120, 11, rng)
    evidence = tmp_path / "evidence"
    for attack in (
        Malicious(Path.touch, evidence),
        Malicious(eval, f"open({str(evidence)!r}, 'w')"),
        Malicious(np.save, str(evidence), 0),
    ):
        for name in ("train", "test", "meta"):
            file = tmp_path / "cifar-100-python" / name
            good = file.read_bytes()
            file.write_bytes(pickle.dumps({"data": attack}))
            assert "which no image file needs" in error_line(partial(cifar100, str(tmp_path)))
            file.write_bytes(good)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python"]


# Missing files and the download


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "svhn", "caltech101"])
def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path, name: str) -> None:
    line = error_line(partial((READERS | OF_FILES)[name], str(tmp_path / "none"), download=False))
    assert f"dataset.root={tmp_path / 'none'}: " in line
    assert "not found: expected " in line
    assert "dataset.download=false; get them from http" in line
    assert ("apt install dataset-fashion-mnist" in line) == (name == "fashion_mnist")
    assert not list(tmp_path.iterdir())


def test_one_missing_file_is_a_missing_dataset(tmp_path: Path, rng: np.random.Generator) -> None:
    layouts.write_cifar10(tmp_path, 35, 11, rng)
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    assert "CIFAR10 not found" in error_line(partial(cifar10, str(tmp_path), download=False))


class QuietServer(ThreadingHTTPServer):
    """Prints nothing when a client leaves early, as torchvision does after it has looked for a redirect."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Makes torchvision download from a local folder with a few images of two datasets."""
    folder = tmp_path / "server"
    layouts.write_fashion_mnist(folder, 20, 11, np.random.default_rng(1), gzipped=True, flat=True)
    layouts.write_cifar100(folder, 20, 11, np.random.default_rng(1))
    layouts.write_svhn(folder, 20, 11, np.random.default_rng(1))
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-100-python", "cifar-100-python")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    http = QuietServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}/"
    monkeypatch.setenv("no_proxy", "*")
    publish(monkeypatch, folder, url)
    yield folder
    http.shutdown()
    thread.join()
    http.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    fashion, cifar = torchvision.datasets.FashionMNIST, torchvision.datasets.CIFAR100
    monkeypatch.setattr(fashion, "mirrors", [url])
    files = [(f"{name}.gz", md5(folder / f"{name}.gz")) for name in layouts.FASHION_FILES]
    monkeypatch.setattr(fashion, "resources", files)
    monkeypatch.setattr(cifar, "url", f"{url}cifar-100-python.tar.gz")
    monkeypatch.setattr(cifar, "tgz_md5", md5(folder / "cifar-100-python.tar.gz"))
    for attribute, name in (("train_list", "train"), ("test_list", "test")):
        monkeypatch.setattr(cifar, attribute, [[name, md5(folder / "cifar-100-python" / name)]])
    numbers = torchvision.datasets.SVHN
    files = {
        name: [f"{url}{name}_32x32.mat", f"{name}_32x32.mat", md5(folder / f"{name}_32x32.mat")]
        for name in ("train", "test")
    }
    monkeypatch.setattr(numbers, "split_list", files)
    meta = {**cifar.meta, "md5": md5(folder / "cifar-100-python" / "meta")}
    monkeypatch.setattr(cifar, "meta", meta)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100", "svhn"])
def test_a_download_leaves_the_files_and_nothing_else(
    server: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "data"
    first = READERS[name](str(root))
    again = READERS[name](str(root), download=False)
    for images, same in zip(first[:4:2], again[:4:2], strict=True):
        np.testing.assert_array_equal(all_images(images), all_images(same))
    assert (len(first.train), len(first.test)) == (20, 11)
    files = {"cifar100": ("train", "test", "meta"), "svhn": ("train_32x32.mat", "test_32x32.mat")}
    expected = files.get(name, layouts.FASHION_FILES)
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == sorted(expected)
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("damage", ["truncated", "absent"])
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100"])
def test_a_failed_download_leaves_nothing(
    server: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    last = {"fashion_mnist": "t10k-labels-idx1-ubyte.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
    truncate(server / last) if damage == "truncated" else (server / last).unlink()
    line = error_line(partial(READERS[name], str(tmp_path / "new" / "data")))
    assert "download failed (" in line
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        assert "timed out" in error_line(partial(cifar10, str(tmp_path)))
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "CIFAR10 not found" in error_line(partial(cifar10, str(tmp_path / "file"), download=False))


# Configuration


@pytest.mark.parametrize("name", READERS | OF_FILES | {"image_folder": image_folder})
def test_the_configured_dataset_is_the_function_with_its_defaults(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = OmegaConf.create(text)
    reader = (READERS | OF_FILES | {"image_folder": image_folder})[name]
    assert config._target_ == f"sslpl.data.{name}"
    defaults = {key: parameter.default for key, parameter in signature(reader).parameters.items()}
    assert {key: value for key, value in config.items() if key != "_target_"} == defaults


def test_hydra_instantiates_a_dataset() -> None:
    data = instantiate(OmegaConf.load(CONF / "digits.yaml"), flip=True)
    assert data.flip
    assert len(data.train) == 1437
