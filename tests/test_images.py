from pathlib import Path

import pytest
import torch
from conftest import TINY, run_folder
from PIL import Image
from torch import Tensor

from sslpl.data import datasets
from sslpl.data.images import StreamedImages, TensorImages, place_images


class PngReader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, position: int) -> Tensor:
        with Image.open(self.folder / f"{position}.png") as image:
            return torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(1, 4, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_on_disk_arrive_in_order(tmp_path: Path, workers: int) -> None:
    data = torch.randint(0, 256, (12, 1, 4, 5), dtype=torch.uint8)
    for position, image in enumerate(data):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{position}.png")
    images = StreamedImages(PngReader(tmp_path), 12, (1, 4, 5), workers=workers)
    indices = [torch.tensor([3, 1, 4]), torch.tensor([11]), torch.tensor([5, 9, 2, 6])]
    state = torch.get_rng_state()
    for ours, theirs in zip(images.batches(indices), TensorImages(data).batches(indices), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(state, torch.get_rng_state())
    assert len(images) == 12
    assert list(images.batches([])) == []


def test_a_run_on_streamed_images_is_the_same_run(sslpl, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert sslpl(*TINY, "runtime.output_dir=held").code == 0
    monkeypatch.setattr(
        TensorImages, "to", lambda self, device: StreamedImages(self.data.__getitem__, len(self), self.shape, device)
    )
    assert sslpl(*TINY, "runtime.output_dir=streamed").code == 0
    held, streamed = (run_folder(Path(root)) / "queries.csv" for root in ("held", "streamed"))
    assert held.read_bytes() == streamed.read_bytes()


def test_what_fits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    images = datasets.digits("data").train
    assert isinstance(place_images(images, torch.device("cpu")), TensorImages)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100_000, 100_000))
    streamed = place_images(images, torch.device("cuda"))
    assert isinstance(streamed, StreamedImages)
    assert streamed.device.type == "cuda"
