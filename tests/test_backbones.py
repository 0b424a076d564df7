"""Backbones: published networks, library networks by name, starting weights, a frozen trunk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import TINY, Result, run_folder
from torch import Tensor, nn

from sslpl.models.backbone import small_cnn
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.libraries import timm
from sslpl.models.libraries import torchvision as of_torchvision
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.models.resnet import resnet18, resnet34, resnet50
from sslpl.models.starting_weights import LinearProbe, Start, load_weights_into, start_backbone
from sslpl.models.wide_resnet import wide_resnet, wide_resnet28_2
from sslpl.types import UserError

Command = Callable[..., Result]
SIZES = {"num_classes": 5, "in_channels": 3}
RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def noise(size: int = 64, count: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def with_statistics(network: nn.Module) -> nn.Module:
    """Sets random batch norm statistics, so that batch norms are not the identity."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_torchvisions(name: str) -> None:
    theirs = with_statistics(seeded(lambda: torchvision.models.get_model(name, num_classes=5))).eval()
    ours = RESNETS[name](**SIZES, stem="imagenet").eval()
    load_weights_into(ours, theirs.state_dict(), "file")
    images = noise()
    features = ours(images)
    torch.testing.assert_close(features.logits, theirs(images), rtol=1e-4, atol=1e-4)
    assert [stage.shape[1] for stage in features.maps] == list(ours.channels)
    assert [stage.shape[2] for stage in features.maps] == [16, 8, 4, 2]
    torch.testing.assert_close(FrozenBackbone(ours, False)(images).logits, features.logits, rtol=1e-3, atol=1e-3)


def test_the_stem_follows_the_image() -> None:
    stem = {size: len(resnet18(**SIZES, image_size=size).stem) for size in (32, 63, 64, 224)}
    assert stem == {32: 2, 63: 2, 64: 3, 224: 3}
    assert len(resnet18(**SIZES, image_size=224, stem="cifar").stem) == 2
    assert len(resnet18(**SIZES, image_size=32, stem="imagenet").stem) == 3


def test_the_first_weights_of_the_published_backbone_are_what_they_were() -> None:
    network = seeded(lambda: resnet18(num_classes=10, in_channels=3))
    first = seeded(lambda: nn.Conv2d(64, 64, 3, bias=False))  # the stages are drawn before the stem
    assert torch.equal(network.stages[0][0].first[0].weight, first.weight)


def test_wide_resnets_have_the_published_size() -> None:
    with torch.device("meta"):
        counts = {
            k: sum(p.numel() for p in wide_resnet(28, k, num_classes=10, in_channels=3, dropout=0.0).parameters())
            for k in (2, 10)
        }
    assert counts == {2: 1_467_610, 10: 36_479_194}  # 1.5 and 36.5 million in the paper's table


def test_a_wide_resnet_by_formula() -> None:
    network = with_statistics(seeded(lambda: wide_resnet(10, 1, num_classes=3, in_channels=1, dropout=0.0))).eval()
    x = network.stem(noise(8, channels=1))
    for stage in network.stages:
        (block,) = stage[0] if isinstance(stage[1:], nn.Sequential) and len(stage) == 3 else stage
        ready = block.norm(x).relu()
        out = block.second(block.first[1](block.first[0](ready)).relu())
        x = out + (x if block.shortcut is None else block.shortcut(ready))
    x = stage[2](stage[1](x))
    features = network(noise(8, channels=1))
    torch.testing.assert_close(features.maps[-1], x)
    torch.testing.assert_close(features.logits, network.head(x.mean(dim=(2, 3))))
    assert [m.shape[2] for m in features.maps] == [8, 4, 2]


LIBRARY = [
    ("resnet18", 64), ("efficientnet_b0", 64), ("convnext_atto", 64), ("vit_tiny_patch16_224", 64),
    ("mobilenetv3_small_050", 32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size"), LIBRARY)
def test_networks_of_timm(name: str, size: int) -> None:
    pytest.importorskip("timm")
    network = seeded(lambda: timm(num_classes=5, in_channels=1, image_size=size, name=name)).eval()
    assert_works(network, noise(size, channels=1))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("mobilenet_v3_small", 32), ("regnet_y_400mf", 64)])
def test_networks_of_torchvision(name: str, size: int) -> None:
    network = seeded(lambda: of_torchvision(num_classes=5, in_channels=1, image_size=size, name=name)).eval()
    assert_works(network, noise(size, channels=1))


def assert_works(network: nn.Module, images: Tensor) -> None:
    features = network(images)
    assert features.logits.shape == (2, 5)
    assert tuple(stage.shape[1] for stage in features.maps) == network.channels
    assert 2 <= len(features.maps) <= 4
    assert features.embedding.dtype == torch.float32
    module = LossPredictionModule(network.channels)
    (features.logits.sum() + module(features.maps).sum()).backward()
    assert all(parameter.grad is not None for parameter in network.head.parameters())
    torch.testing.assert_close(FrozenBackbone(network, False)(images).logits, features.logits, rtol=1e-3, atol=1e-3)
    short = FrozenBackbone(network, True)(images)
    assert short.logits.dtype == short.embedding.dtype == torch.float32
    torch.testing.assert_close(short.embedding, features.embedding, rtol=0.2, atol=0.2)


def test_a_library_network_says_the_same_as_in_its_library() -> None:
    library = pytest.importorskip("timm")
    theirs = with_statistics(seeded(lambda: library.create_model("resnet18", num_classes=5))).eval()
    ours = timm(**SIZES, image_size=64, name="resnet18").eval()
    load_weights_into(ours, theirs.state_dict(), "file")
    torch.testing.assert_close(
        ours(noise()).embedding, theirs.forward_head(theirs.forward_features(noise()), pre_logits=True)
    )
    other = with_statistics(seeded(lambda: torchvision.models.resnet18(num_classes=5))).eval()
    same, traced = resnet18(**SIZES, stem="imagenet").eval(), of_torchvision(**SIZES, image_size=64).eval()
    load_weights_into(same, other.state_dict(), "file")
    load_weights_into(traced, other.state_dict(), "file")
    for mine, found in zip(same(noise()).maps, traced(noise()).maps, strict=True):
        torch.testing.assert_close(mine, found)


def refusal(action: Callable[..., object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_networks_that_cannot_be_had() -> None:
    pytest.importorskip("timm")
    assert "timm has no such network" in refusal(partial(timm, **SIZES, name="resnet19"))
    assert "must be one of alexnet" in refusal(partial(of_torchvision, **SIZES, name="vit_b_16"))
    assert "cannot be used for images of 16x16 pixels" in refusal(
        partial(timm, **SIZES, name="inception_v3", image_size=16)
    )


def test_weights_of_a_file_but_for_a_head_of_other_classes(tmp_path: Path) -> None:
    source = with_statistics(seeded(lambda: small_cnn(num_classes=7, in_channels=3)))
    weights = source.state_dict()
    torch.save(weights, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "nested.pt")
    torch.save({"backbone": weights, "module": None}, tmp_path / "weights.pt")
    for name in ("plain.pt", "nested.pt", "weights.pt"):
        network = small_cnn(**SIZES)
        head = network.head.weight.clone()
        start_backbone(network, Start(str(tmp_path / name)))
        assert torch.equal(network.stages[3][0][0].weight, source.stages[3][0][0].weight)
        assert torch.equal(network.stages[0][0][1].running_mean, source.stages[0][0][1].running_mean)
        assert torch.equal(network.head.weight, head)
    same = start_backbone(small_cnn(num_classes=7, in_channels=3), Start(str(tmp_path / "plain.pt")))
    assert torch.equal(same.head.weight, source.head.weight)


def test_color_weights_see_gray_images(tmp_path: Path) -> None:
    color = resnet18(**SIZES, stem="imagenet").eval()
    gray = resnet18(num_classes=5, in_channels=1, stem="imagenet").eval()
    load_weights_into(gray, color.state_dict(), "file")
    images = noise(channels=1)
    torch.testing.assert_close(gray(images).logits, color(images.expand(-1, 3, -1, -1)).logits, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    def said(network: nn.Module, content: object) -> str:
        file = tmp_path / "weights.pt"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        line = refusal(lambda: start_backbone(network, Start(str(file))))
        assert str(file) in line
        return line

    weights = small_cnn(**SIZES).state_dict()
    assert "is missing" in said(small_cnn(**SIZES), {k: v for k, v in weights.items() if "stages.2" not in k})
    assert "this backbone has no extra" in said(small_cnn(**SIZES), weights | {"extra": torch.ones(1)})
    shape = said(small_cnn(**SIZES), weights | {"stages.0.0.0.weight": torch.ones(1)})
    assert "stages.0.0.0.weight has shape [1], not [32, 3, 3, 3]" in shape
    assert "this backbone has no stages.0.2" in said(
        resnet18(**SIZES, stem="imagenet"), resnet34(**SIZES, stem="imagenet").state_dict()
    )
    assert "backbone.stem=imagenet" in said(resnet18(**SIZES), torchvision.models.resnet18().state_dict())
    for content in (b"", b"<html>", [1], {}, {"a": 1}):
        assert "weights" in said(small_cnn(**SIZES), content)
    assert "must be imagenet or a file" in refusal(
        lambda: start_backbone(small_cnn(**SIZES), Start(str(tmp_path / "none")))
    )
    assert "must be null or a file" in refusal(lambda: start_backbone(small_cnn(**SIZES), Start("imagenet")))


def test_imagenet_weights_come_from_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.resnet18()
    monkeypatch.setattr("sslpl.models.starting_weights.torchvision_weights", lambda _: theirs.state_dict())
    for build in (resnet18, of_torchvision):
        network = build(**SIZES, image_size=64)
        network = start_backbone(network, Start("imagenet")).eval()
        torch.testing.assert_close(network(noise()).maps[0], theirs.eval().layer1(stem_of(theirs)(noise())))


def stem_of(network: nn.Module) -> nn.Module:
    return nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr("sslpl.models.starting_weights.torchvision_weights", fails)
    line = refusal(lambda: start_backbone(resnet18(**SIZES, image_size=64), Start("imagenet")))
    assert "backbone.weights=imagenet: download failed (no network)" in line


@pytest.mark.parametrize("build", [small_cnn, wide_resnet28_2])
def test_of_a_frozen_backbone_the_head_alone_learns(build: Callable[..., nn.Module]) -> None:
    whole = with_statistics(seeded(lambda: build(**SIZES, dropout=0.5)))
    network = start_backbone(whole, Start(freeze=True)).train()
    assert isinstance(network, LinearProbe)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        features = network.train()(noise(16, 8))
        assert not features.embedding.requires_grad
        optimizer.zero_grad()
        features.logits.sum().backward()
        optimizer.step()
    after = network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"network.head.weight", "network.head.bias"}
    assert not torch.equal(network.train()(noise(16)).logits, network(noise(16)).logits)  # dropout is on
    assert torch.equal(network.eval()(noise(16)).logits, network(noise(16)).logits)
    assert network.head is whole.head


def test_a_frozen_run_with_weights_of_another(sslpl: Command, tmp_path: Path) -> None:
    done = sslpl(*TINY, "budget.cycles=1", "runtime.output_dir=first")
    assert done.code == 0, done.err
    weights = run_folder(Path("first")) / "checkpoint" / "weights.pt"
    done = sslpl(*TINY, "method=bald", "backbone.freeze=true", f"backbone.weights={weights.resolve()}")
    assert done.code == 0, done.err
    first = torch.load(weights, weights_only=True)["backbone"]
    last = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
    assert {name for name, value in first.items() if not torch.equal(value, last[f"network.{name}"])} == {
        "head.weight",
        "head.bias",
    }
    done = sslpl(*TINY, "backbone.weights=none.pt", "runtime.output_dir=other")
    assert (done.code, Path("other").exists()) == (2, False)
    assert "backbone.weights=none.pt: must be imagenet or a file with weights" in done.err


def test_a_run_with_a_network_of_timm(sslpl: Command) -> None:
    pytest.importorskip("timm")
    done = sslpl(*TINY, "backbone=timm", "backbone.name=mobilenetv3_small_050", "budget.cycles=2", "dataset.flip=false")
    assert done.code == 0, done.err
