"""Image folders and CSV files: what is read, refused or ignored, and the id of the run."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Result, run_folder, timeless
from PIL import Image
from torchvision import transforms

from sslpl import fingerprints
from sslpl.data import images as image_sets
from sslpl.data import scan
from sslpl.data.decoding import ImageFormat, convert_mode, image_format, open_image, to_array
from sslpl.data.folders import files_fingerprint, image_folder
from sslpl.data.images import StreamedImages, TensorImages, place_images
from sslpl.types import Dataset, UserError

Command = Callable[..., Result]
SMALL = {"resize": 10, "size": 8}
KEYS = ("dataset=image_folder", "dataset.resize=10", "dataset.size=8")
NOISE = np.random.default_rng(0)


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (14, 11)) -> None:
    """Writes a noisy image of a given brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = NOISE.integers(0, 100, (size[1], size[0], 3)) + 70 * shade
    Image.fromarray(noise.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Returns a folder of three classes with 20 training and 5 test images each."""
    root = tmp_path / "images"
    for place, label in enumerate(("ant", "bee", "cow")):
        for number in range(25):
            part = "train" if number < 20 else "test"
            picture(root / part / label / f"{number:02}.{('jpg', 'png', 'bmp')[number % 3]}", place)
    return root


def read(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(next(part.batches([torch.arange(len(part))])) for part in (dataset.train, dataset.test))


def refusal(action: Callable[..., object], *arguments: object, **keys: object) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_a_folder_is_read_as_torchvision_would(root: Path) -> None:
    picture(root / "train" / "ant" / "deeper" / "still" / "x.PNG", 0, (9, 30))
    (root / "train" / "ant" / ".hidden.png").write_bytes(b"no image")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "README.md").write_text("no image")
    data = image_folder(str(root), **SMALL)
    assert data.class_names == ("ant", "bee", "cow")
    assert data.train_labels.bincount().tolist() == [21, 20, 20]
    assert data.test_labels.bincount().tolist() == [5, 5, 5]
    assert data.train_labels.dtype == torch.int64
    assert len(data.paths) == len(data.train) == 61
    assert data.paths[0] == "train/ant/00.jpg"
    assert "train/ant/deeper/still/x.PNG" in data.paths
    assert (data.cutout, data.padding, data.flip, data.train.shape) == (4, 1, True, (3, 8, 8))
    usual = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(8), transforms.PILToTensor()])
    expected = torch.stack([usual(Image.open(root / name).convert("RGB")) for name in data.paths])
    pool, _ = read(data)
    assert (pool.int() - expected.int()).abs().max() <= 1
    exact = pool.transpose(0, 1).flatten(1).double() / 255
    assert data.mean == pytest.approx(exact.mean(dim=1).tolist(), abs=5.1e-5)
    assert data.std == pytest.approx(exact.std(dim=1, correction=0).tolist(), abs=5.1e-5)


def test_a_csv_is_read(root: Path, tmp_path: Path) -> None:
    folder = image_folder(str(root), **SMALL)
    rows = [f"images/{name},{name.split('/')[1]},train" for name in folder.paths[:30]]
    rows += [f"{root / name},{name.split('/')[1]}, train" for name in folder.paths[30:]]
    rows += [f"images/test/{label}/{n}.png,{label},test" for label in ("ant", "bee", "cow") for n in (22,)]
    table = tmp_path / "pool.csv"
    table.write_text("﻿path,label,split\n" + "\n".join(rows[::-1]) + "\n", encoding="utf-8")
    data = image_folder(csv=str(table), **SMALL)
    at = {Path(name).name + name.split("/")[-2]: place for place, name in enumerate(folder.paths)}
    order = torch.tensor([at[Path(name).name + name.split("/")[-2]] for name in data.paths])
    assert sorted(order.tolist()) == list(range(60))
    assert str(root / folder.paths[40]) in data.paths
    assert f"images/{folder.paths[0]}" in data.paths
    assert torch.equal(read(data)[0], read(folder)[0][order])
    assert torch.equal(data.train_labels, folder.train_labels[order])
    assert len(data.test) == 3


def test_images_without_labels_belong_to_the_pool(root: Path, tmp_path: Path) -> None:
    for number in range(4):
        picture(root / "unlabeled" / "day 1" / f"{number}.png")
    data = image_folder(str(root), **SMALL)
    assert len(data.train) == 64
    assert data.train_labels[-4:].tolist() == [-1] * 4
    assert data.paths[-1] == "unlabeled/day 1/3.png"
    assert (data.train_labels[:-4] >= 0).all()
    shutil.rmtree(root / "train")  # whoever labels from nothing names the classes by the test set
    assert image_folder(str(root), **SMALL).class_names == ("ant", "bee", "cow")
    table = tmp_path / "pool.csv"
    rows = ["images/unlabeled/day 1/0.png,,unlabeled", "images/unlabeled/day 1/1.png,,train"]
    table.write_text("path,label,split,note\n" + "\n".join([*rows, "images/test/bee/21.jpg,bee,test,x"]))
    data = image_folder(csv=str(table), **SMALL)
    assert (data.class_names, data.train_labels.tolist()) == (("bee",), [-1, -1])


def test_gray_images_and_a_crop_as_large_as_the_image(root: Path) -> None:
    data = image_folder(str(root), channels=1, resize=8, size=8, cutout=2, flip=False)
    assert data.train.shape == (1, 8, 8)
    assert (len(data.mean), len(data.std), data.cutout, data.flip) == (1, 1, 2, False)
    assert "must be at most dataset.resize=8" in refusal(image_folder, str(root), resize=8, size=9)


COLOR, GRAY = ImageFormat(3, 6, 6), ImageFormat(1, 6, 6)


def shown(image: Image.Image, path: Path, wanted: ImageFormat = COLOR, **keys: object) -> np.ndarray:
    image.save(path, **keys)
    return to_array(open_image(str(path), wanted))


def test_every_mode_becomes_8_bits_of_gray_or_color(tmp_path: Path) -> None:
    red = Image.new("RGB", (6, 6), (200, 0, 0))
    expected = np.full((3, 6, 6), [[[200]], [[0]], [[0]]])
    assert (shown(red, tmp_path / "a.png") == expected).all()
    assert (shown(red.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "p.gif") == expected).all()
    half = red.convert("RGBA")
    half.putalpha(0)
    assert (shown(half, tmp_path / "clear.png") == 255).all()
    clear = Image.new("P", (6, 6), 3)
    clear.putpalette([9] * 768)
    assert (shown(clear, tmp_path / "index.png", transparency=3) == 255).all()
    deep = Image.fromarray(np.full((6, 6), 0x1234, dtype=np.uint16))
    for name in ("deep.png", "deep.tif"):
        assert (shown(deep, tmp_path / name, GRAY) == 0x12).all()
        assert (shown(deep, tmp_path / name) == 0x12).all()
    assert (shown(Image.new("1", (6, 6), 1), tmp_path / "bit.png", GRAY) == 255).all()
    assert (shown(Image.new("LA", (6, 6), (7, 255)), tmp_path / "la.png", GRAY) == 7).all()
    white = shown(Image.new("CMYK", (6, 6), (0, 0, 0, 0)), tmp_path / "print.jpg")
    assert white.min() > 250
    assert convert_mode(Image.new("I", (2, 2), 0x4321), "L").getpixel((0, 0)) == 0x43
    assert convert_mode(Image.new("F", (2, 2), 77.0), "RGB").getpixel((0, 0)) == (77, 77, 77)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (12, 6))
    image.paste(255, (0, 0, 6, 6))  # bright at the left: at the top once it is turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = shown(image, tmp_path / "turned.png", ImageFormat(1, 6, 4), exif=exif)[0]
    assert turned.shape == (4, 4)
    assert turned[0].min() > 200
    assert turned[-1].max() < 50


@pytest.mark.parametrize("side", [(14, 11), (11, 14), (10, 10), (300, 9), (8, 8), (1, 400)])
def test_resizing_and_cropping_are_torchvisions(tmp_path: Path, side: tuple[int, int]) -> None:
    picture(tmp_path / "x.png", 1, side)
    usual = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(7), transforms.PILToTensor()])
    ours = to_array(open_image(str(tmp_path / "x.png"), image_format(3, 10, 7))).astype(int)
    assert np.abs(ours - usual(Image.open(tmp_path / "x.png")).numpy()).max() <= 1


def test_a_very_long_image_takes_no_more_memory(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 2), "blue").save(tmp_path / "long.png")
    assert (to_array(open_image(str(tmp_path / "long.png"), ImageFormat(3, 256, 224)))[2] == 255).all()  # whole: 6 GB


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 640)[None, :, None].repeat(480, 0).repeat(3, 2).astype(np.uint8)
    Image.fromarray(rows).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(rows).save(tmp_path / "x.png")
    ours, exact = (
        to_array(open_image(str(tmp_path / name), ImageFormat(3, 40, 32))).astype(int) for name in ("x.jpg", "x.png")
    )
    assert np.abs(ours - exact).max() <= 4


# What is left out or refused


def test_damaged_files_are_named_once_found_and_left_out(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train" / "bee" / "00.jpg").write_bytes((root / "train" / "bee" / "03.jpg").read_bytes()[:-200])
    (root / "train" / "bee" / "01.png").write_bytes(b"")
    (root / "train" / "cow" / "02.bmp").write_text("<html>")
    (root / "test" / "cow" / "20.bmp").write_bytes((root / "test" / "cow" / "23.bmp").read_bytes()[:90])
    before = files_fingerprint(str(root), None, 3, **SMALL)
    data = image_folder(str(root), **SMALL)
    assert (len(data.train), len(data.test)) == (57, 14)
    assert "train/bee/00.jpg" not in data.paths
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "sslpl: reading 75 image files, once"
    assert said[1].startswith("sslpl: damaged image files are left out: 4 (train/bee/00.jpg (")
    assert said[1].endswith("; ...)")
    assert len(said) == 2
    scan.file_records.cache_clear()
    scan.pixel_statistics.cache_clear()
    monkeypatch.setattr(scan, "open_image", None)  # another process has nothing left to find out
    again = image_folder(str(root), **SMALL)
    assert (again.paths, again.mean, again.std) == (data.paths, data.mean, data.std)
    assert "reading" not in capfd.readouterr().err
    monkeypatch.undo()
    picture(root / "train" / "bee" / "01.png", 1)
    assert len(image_folder(str(root), **SMALL).train) == 58
    assert files_fingerprint(str(root), None, 3, **SMALL) != before


def test_a_root_that_cannot_be_written_or_a_spoilt_cache_is_measured_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = image_folder(str(root), **SMALL)
    kept = root / ".sslpl.json"
    assert set(json.loads(kept.read_text())) == {"files", "statistics"}
    for spoilt in ("", "[]", '"x"', "{}", '{"files": 1}', '{"files": {"train/ant/00.jpg": [1]}, "statistics": []}'):
        kept.write_text(spoilt)
        scan.file_records.cache_clear()
        scan.pixel_statistics.cache_clear()
        assert image_folder(str(root), **SMALL).mean == expected.mean
    kept.unlink()

    def fails(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(scan, "write_whole", fails)
    scan.file_records.cache_clear()
    scan.pixel_statistics.cache_clear()
    assert image_folder(str(root), **SMALL).std == expected.std
    assert not kept.exists()


def test_only_files_that_changed_are_read_again(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (str(root), None, 3, 10, 8)
    before = files_fingerprint(*key)
    scan.file_records.cache_clear()
    read_again: list[str] = []
    opened_first = fingerprints.content_digest
    monkeypatch.setattr(scan, "content_digest", lambda path: read_again.append(path) or opened_first(path))
    capfd.readouterr()
    assert files_fingerprint(*key) == before
    assert (read_again, capfd.readouterr().err) == ([], "")
    os.utime(root / "train" / "cow" / "00.jpg", ns=(1, 1))  # touched, and the same
    picture(root / "train" / "ant" / "01.png", 2)  # replaced under the same name
    (root / "test" / "bee" / "20.bmp").unlink()
    changed = files_fingerprint(*key)
    assert changed != before
    assert read_again == [str(root / "train" / name) for name in ("ant/01.png", "cow/00.jpg")]
    assert capfd.readouterr().err == "sslpl: reading 2 image files, once\n"


def test_what_a_folder_lacks_is_said_in_one_line(root: Path) -> None:
    def said() -> str:
        line = refusal(image_folder, str(root), **SMALL)
        assert line.startswith(f"dataset.root={root}: ")
        return line

    picture(root / "train" / "stray.png")
    assert "train/stray.png is in no class; expected train/<class>/stray.png" in said()
    (root / "train" / "stray.png").unlink()
    picture(root / "test" / "dog" / "1.png")
    assert "class dog of the test set" in said()
    (root / "train" / "dog").mkdir()
    assert "class dog has no train image" in said()
    (root / "train" / "dog" / "1.jpg").write_bytes(b"damaged")
    assert "class dog has no train image" in said()
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "test")
    assert "expected train/<class>/ and test/<class>/ there" in said()
    (root / "test").mkdir()
    assert "no test images" in said()
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    picture(root / "test" / "ant" / "1.png")
    assert "no train images" in said()


CSV_MISTAKES = {
    "path,split\nx,train": "no column label; its first line must name path, label and split",
    "": "no column path",
    "path,label,split\nimages/train/ant/00.jpg,ant,valid": "line 2: split=valid path=images/train/ant/00.jpg",
    "path,label,split\n,ant,train": "line 2: split=train path=empty",
    "path,label,split\nimages/train/ant/00.jpg": "line 2: split=empty",
    "path,label,split\nimages/test/ant/20.bmp,,test": "must have a label (images/test/ant/20.bmp)",
    "path,label,split\nimages/test/ant/20.bmp,ant,unlabeled": "must have no label",
    "path,label,split\nimages/train/ant/00.jpg,ant,train\nimages/./train/ant/00.jpg,ant,test": "more than once",
    "path,label,split\nnone.png,ant,train\nnone2.png,ant,test": "none.png is not there (2 of 2 files are missing)",
    "path,label,split\nimages/train/ant/00.jpg,ant,train": "no test images",
    "path,label,split\nimages/train/ant/00.jpg,ant,test": "no train images",
    "path,label,split\nimages/train/ant/00.jpg,a,train\nimages/test/bee/20.bmp,b,test": "class b of the test set",
}


@pytest.mark.parametrize("text", CSV_MISTAKES)
def test_mistakes_in_a_csv_are_said_in_one_line(root: Path, tmp_path: Path, text: str) -> None:
    table = tmp_path / "pool.csv"
    table.write_text(text)
    line = refusal(image_folder, csv=str(table), **SMALL)
    assert line.startswith(f"dataset.csv={table}: ")
    assert CSV_MISTAKES[text] in line


def test_a_csv_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(image_folder, csv=str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("path,label,split\né,x,train".encode("latin1"))
    assert "codec can't decode" in refusal(image_folder, csv=str(tmp_path / "latin.csv"))
    (tmp_path / "nul.csv").write_bytes(b"path,label,split\n\x00,x,train\n")
    refusal(image_folder, csv=str(tmp_path / "nul.csv"))


# Which run it is, held or streamed


def test_the_same_files_elsewhere_are_the_same_run(sslpl: Command, root: Path, tmp_path: Path) -> None:
    done = sslpl(*TINY, *KEYS, f"dataset.root={root}", "budget.initial=20", "budget.per_cycle=10")
    assert done.code == 0, done.err
    folder = run_folder()
    shutil.copytree(root, tmp_path / "copy")
    command = (*TINY, *KEYS, f"dataset.root={tmp_path / 'copy'}", "budget.initial=20", "budget.per_cycle=10")
    done = sslpl(*command)
    assert (done.code, done.out) == (0, f"finished already: {folder}\n")
    (tmp_path / "copy" / "train" / "ant" / "00.jpg").rename(tmp_path / "copy" / "train" / "bee" / "99.jpg")
    pinned = yaml.safe_load((folder / "config.yaml").read_text())["dataset"]["fingerprint"]
    done = sslpl(*command, f"dataset.fingerprint='{pinned}'")
    assert done.code == 2
    assert f"dataset.fingerprint={pinned}: the files have the fingerprint " in done.err
    done = sslpl(*command, "runtime.output_dir=other")
    assert done.code == 0, done.err
    assert run_folder(Path("other")).name != folder.name


def test_files_replaced_under_the_same_names_are_another_run(sslpl: Command, root: Path) -> None:
    command = (*TINY, *KEYS, f"dataset.root={root}", "budget.initial=20", "budget.per_cycle=10")
    done = sslpl(*command)
    assert done.code == 0, done.err
    first = run_folder()
    for path in root.rglob("*.bmp"):  # of the same size
        time = path.stat().st_mtime_ns + 10**9
        picture(path, 2)
        os.utime(path, ns=(time, time))
    done = sslpl(*command)
    assert (done.code, "finished already" in done.out) == (0, False), done.err
    assert len([*first.parent.iterdir()]) == 2


def test_a_copy_with_other_times_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copy)
    assert files_fingerprint(str(copy), None, 3, 10, 8) == files_fingerprint(str(root), None, 3, 10, 8)


def test_streamed_images_make_the_same_run_as_held_ones(sslpl: Command, root: Path) -> None:
    command = (*TINY, *KEYS, f"dataset.root={root}", "budget.initial=20", "budget.per_cycle=10")
    done = sslpl(*command, "runtime.output_dir=held")
    assert done.code == 0, done.err
    assert "sslpl: 60 images of 3x8x8 are read into the memory of the CPU (0.0 MiB)" in done.err.splitlines()
    done = sslpl(*command, "runtime.output_dir=streamed", "runtime.held_gib=0")
    assert done.code == 0, done.err
    assert "60 images of 3x8x8 stream from their files" in done.err
    held, streamed = (run_folder(Path(kind)) for kind in ("held", "streamed"))
    assert held.name == streamed.name
    assert (held / "queries.csv").read_bytes() == (streamed / "queries.csv").read_bytes()
    assert timeless(held) == timeless(streamed)


def test_a_pool_without_labels_is_refused(sslpl: Command, root: Path) -> None:
    picture(root / "unlabeled" / "1.png")
    done = sslpl(*TINY, *KEYS, f"dataset.root={root}")
    assert done.code == 2
    assert "1 of 61 images of the pool have no label to tell (those in unlabeled/" in done.err
    assert "oracle=file" in done.err
    assert not Path("outputs").exists()
    done = sslpl(*TINY, *KEYS, f"dataset.root={root}", "dataset.label_noise=0.1")
    assert "need the label of every image" in done.err


def test_a_variant_keeps_the_paths_of_what_it_keeps(root: Path) -> None:
    from sslpl.data.variants import PoolVariant, apply_variant

    data = image_folder(str(root), **SMALL)
    fewer = apply_variant(data, PoolVariant("stepped", 4.0), 0)
    assert len(fewer.paths) == len(fewer.train) == len(fewer.train_labels) < 60
    assert [data.class_names[label] for label in fewer.train_labels] == [name.split("/")[1] for name in fewer.paths]
    everything = dict(zip(data.paths, read(data)[0], strict=True))
    assert all(torch.equal(image, everything[name]) for image, name in zip(read(fewer)[0], fewer.paths, strict=True))


def test_what_is_held_and_what_streams(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cpu = image_folder(str(root), **SMALL), torch.device("cpu")
    held = place_images(data.train, cpu)
    assert isinstance(held, TensorImages)
    assert torch.equal(held.data, read(data)[0])
    assert isinstance(place_images(data.train, cpu, limit=60 * 192 - 1), StreamedImages)
    monkeypatch.setattr(image_sets, "free_memory", lambda _: 4 * 60 * 192 - 4)
    assert isinstance(place_images(data.train, cpu), StreamedImages)
    monkeypatch.undo()
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 100))
    from_memory = place_images(data.train, gpu)
    assert isinstance(from_memory, StreamedImages)
    assert torch.equal(from_memory.read(5), held.data[5])
    assert from_memory.device == gpu
    assert 0 < image_sets.free_memory(torch.device("cpu")) < 2**50


def test_a_file_that_is_gone_ends_the_run_in_one_line(root: Path) -> None:
    data = image_folder(str(root), **SMALL)
    (root / data.paths[3]).unlink()
    with pytest.raises(FileNotFoundError):
        list(data.train.batches([torch.arange(8)]))


def test_bits_of_an_exif_that_is_damaged_do_not_matter(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 40000) + b"\x01\x12\0\x03\0\0\xff\xff"
    Image.new("RGB", (6, 6), "white").save(tmp_path / "x.jpg", exif=exif)
    assert to_array(open_image(str(tmp_path / "x.jpg"), COLOR)).min() > 250
