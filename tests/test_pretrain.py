"""Pre-training: views and loss against their formulas, the command, and runs that start from its weights."""

import csv
import hashlib
import io
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Result, run_folder, timeless
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from PIL import Image
from torch.nn.functional import cosine_similarity
from torchvision.transforms.v2 import functional as reference

from sslpl.config import identity
from sslpl.config.build import build_setup, with_fingerprints
from sslpl.loop import empty_state, initial_state
from sslpl.models.backbone import small_cnn
from sslpl.models.starting_weights import Start, file_weights, start_backbone
from sslpl.phases.query import initial_selection, query_context
from sslpl.pretrain import __main__ as main
from sslpl.pretrain.simclr import SimCLR, knn_accuracy, nt_xent, whole_batches
from sslpl.pretrain.simclr_views import SimCLRViews, color_jitter, draw_boxes, resized_crop
from sslpl.recording import checkpoint, progress
from sslpl.run import errors, jobs
from sslpl.seeds import rng
from sslpl.setup import Setup
from sslpl.types import UserError

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
SHORT = (*(option for option in TINY if not option.startswith("budget.cycles")), "budget.cycles=1", "method=random")
QUICK = ("pretraining.epochs=2", "pretraining.batch_size=300", "runtime.num_threads=1", "runtime.progress=none")


def random_images(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (12, channels, height, width), generator=rng(0, "images"), dtype=torch.uint8)


class TestViews:
    @pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 9, 20)])
    def test_a_crop_is_torchvisions(self, channels: int, height: int, width: int) -> None:
        images = random_images(channels, height, width).float() / 255
        boxes = draw_boxes(len(images), height, width, 0.1, rng(0, "boxes"))
        flip = torch.arange(len(images)) % 2 == 0
        for image, box, mirrored, found in zip(images, boxes, flip, resized_crop(images, boxes, flip), strict=True):
            expected = reference.resized_crop(image, *box.int().tolist(), [height, width], antialias=True)
            torch.testing.assert_close(found, expected.flip(2) if mirrored else expected, atol=1e-5, rtol=0)

    def test_crops_lie_in_the_image_and_have_the_asked_sizes(self) -> None:
        top, left, height, width = draw_boxes(20_000, 40, 40, 0.2, rng(0, "boxes")).unbind(1)
        assert torch.stack([top, left, height - 1, width - 1]).amin() == 0 or float(top.amin()) == 0
        assert float(torch.maximum(top + height, left + width).amax()) == 40
        share, ratio = height * width / 1600, width / height
        assert 0.17 < float(share.amin()) < 0.23
        assert 0.65 < float(ratio.amin()) < 0.8 < 1.25 < float(ratio.amax()) < 1.5
        fitting = share[share < 0.5]  # among those that nearly always fit, areas are uniform
        assert float(fitting.mean()) == pytest.approx(0.35, abs=0.01)
        assert draw_boxes(3, 4, 100, 1.0, rng(0, "boxes"))[:, 2:].tolist() == [[4, 5]] * 3  # none fits: the largest
        assert draw_boxes(3, 7, 7, 1.0, rng(0, "boxes"))[:, :2].sum() == 0

    def test_the_jitter_is_torchvisions(self) -> None:
        images = random_images(3, 8, 8).float() / 255
        images[0] = images[0, :1]  # gray: no hue to turn
        jitter = torch.tensor([0.7, 1.3, 0.6, -0.08]).repeat(len(images), 1)
        expected = reference.adjust_brightness(images, 0.7)
        expected = reference.adjust_contrast(expected, 1.3)
        expected = reference.adjust_saturation(expected, 0.6)
        expected = reference.adjust_hue(expected, -0.08)
        torch.testing.assert_close(color_jitter(images, jitter), expected, atol=1e-5, rtol=0)
        gray = color_jitter(images[:, :1], jitter)
        expected = reference.adjust_contrast(reference.adjust_brightness(images[:, :1], 0.7), 1.3)
        torch.testing.assert_close(gray, expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_views_have_the_asked_shares_and_depend_on_their_draws_alone(self, channels: int) -> None:
        mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]
        options = {"flip": True, "smallest_crop": 0.2, "jitter": 0.5, "jitter_probability": 0.8}
        views, images = SimCLRViews(mean, std, gray_probability=0.2, **options), random_images(channels, 8, 8)  # type: ignore[arg-type]
        draws = views.draw(10_000, 8, 8, rng(0, "views"))
        still = (draws.jitter == torch.tensor([1.0, 1, 1, 0])).all(dim=1)
        for share, expected in ((draws.flip, 0.5), (still, 0.2), (draws.gray, 0.2)):
            assert float(share.float().mean()) == pytest.approx(expected, abs=0.02)
        spread = (draws.jitter - torch.tensor([1.0, 1, 1, 0])).abs().amax(dim=0)
        torch.testing.assert_close(spread, torch.tensor([0.4, 0.4, 0.4, 0.1]), atol=0.001, rtol=0)
        first, second = (views(images, views.draw(12, 8, 8, rng(0, "views"))) for _ in range(2))
        assert torch.equal(first, second)
        back = first * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        assert -1e-4 < float(back.amin()) < float(back.amax()) < 1 + 1e-4
        plain = SimCLRViews(
            mean, std, flip=False, smallest_crop=1.0, jitter=0.0, jitter_probability=1.0, gray_probability=0
        )
        torch.testing.assert_close(plain(images, plain.draw(12, 8, 8, rng(0, "views"))), plain.normalize(images))


class TestLearning:
    def test_the_loss_is_that_of_the_paper(self) -> None:
        projected = torch.randn(10, 6, generator=rng(0, "projected"))
        total = 0.0
        for i in range(10):
            similarity = [math.exp(float(cosine_similarity(projected[i], z, dim=0)) / 0.3) for z in projected]
            total -= math.log(similarity[(i + 5) % 10] / (sum(similarity) - similarity[i]))
        assert float(nt_xent(projected, 0.3)) == pytest.approx(total / 10, abs=1e-5)

    def test_neighbors_vote_by_their_similarity(self) -> None:
        known, test = torch.randn(30, 4, generator=rng(0, "known")), torch.randn(40, 4, generator=rng(0, "test"))
        labels, truth = torch.arange(30) % 3, torch.arange(40) % 3
        right = 0
        for point, label in zip(test, truth, strict=True):
            cosine = cosine_similarity(point, known)
            votes = torch.zeros(3)
            for row in cosine.argsort(descending=True)[:7]:
                votes[labels[row]] += math.exp(float(cosine[row]) / 0.1)
            right += int(votes.argmax() == label)
        assert knn_accuracy(known, labels, test, truth, 7, 0.1) == right / 40
        assert knn_accuracy(known[:0], labels[:0], test, truth) is None

    def test_batches_have_one_size_and_rates_fall_to_a_thousandth(self) -> None:
        batches = whole_batches(10, 4, rng(0, "order"))
        assert [len(batch) for batch in batches] == [4, 4]
        assert len(torch.cat(batches).unique()) == 8
        assert [len(batch) for batch in whole_batches(3, 4, rng(0, "order"))] == [3]
        options = SimCLR(epochs=1000, rate=0.4)
        assert options.learning_rate_at(0) == 0.4
        assert options.learning_rate_at(500) == pytest.approx(0.4 * 0.5005)
        assert options.learning_rate_at(999) == pytest.approx(0.0004, rel=0.01)


@pytest.fixture
def pretrain(capfd: pytest.CaptureFixture[str], monkeypatch: Patch, tmp_path: Path) -> Command:
    """Runs `python -m sslpl.pretrain` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return run


def made(root: Path = Path("outputs")) -> Path:
    (found,) = root.glob("*/pretraining/*/provenance.json")
    return found.parent


class TestCommand:
    def test_it_leaves_weights_that_a_run_begins_with(self, pretrain: Command, sslpl: Command) -> None:
        done = pretrain(*QUICK)
        assert (done.code, done.err) == (0, "")
        folder = made()
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml", "provenance.json", "metrics.csv", "backbone.pt",
        }  # fmt: skip
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        assert float(rows[2]["loss"]) < float(rows[1]["loss"]) < math.log(600)
        assert 0.5 < float(rows[0]["knn_accuracy"]) <= 1 >= float(rows[2]["knn_accuracy"]) > 0.5
        line = done.out.splitlines()[-1]
        assert line.startswith("use it: python run.py dataset=digits backbone=small_cnn backbone.weights=")
        again = pretrain(*QUICK)
        assert (again.code, again.out) == (0, f"finished already: {folder}\n{line}\n")
        ran = sslpl(*SHORT, *line.split()[4:])
        assert ran.code == 0, ran.err
        assert run_folder().parent.name == "random"

    def test_a_killed_one_leaves_the_same_weights(self, pretrain: Command, monkeypatch: Patch) -> None:
        assert pretrain(*QUICK, "runtime.output_dir=whole").code == 0
        save, saves = checkpoint.save, []

        def dying_save(*arguments: Any) -> None:
            save(*arguments)
            saves.append(1)
            if len(saves) in (3, 4, 7):  # within an epoch, between two, and again within one
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", dying_save)
            for _ in range(3):
                killed = pretrain(*QUICK, "runtime.output_dir=killed", "runtime.checkpoint_minutes=0")
                assert (killed.code, killed.err) == (130, "sslpl: interrupted; rerun the same command to resume\n")
        done = pretrain(*QUICK, "runtime.output_dir=killed", "runtime.progress=plain")
        assert done.code == 0, done.err
        assert "resumed at epoch" in done.out
        whole, killed_folder = made(Path("whole")), made(Path("killed"))
        assert (whole / "backbone.pt").read_bytes() == (killed_folder / "backbone.pt").read_bytes()
        assert timeless(whole) == timeless(killed_folder)

    def test_a_signal_saves_and_ends_with_its_code(self, pretrain: Command, monkeypatch: Patch) -> None:
        advance = progress.Progress.advance

        def signalled(self: progress.Progress, *arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            advance(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(progress.Progress, "advance", signalled)
            done = pretrain(*QUICK)
        assert (done.code, done.err) == (143, "sslpl: interrupted by SIGTERM; rerun the same command to resume\n")
        assert [path.name for path in (made() / "checkpoint").iterdir()] == ["state.ckpt"]

    def test_other_images_under_the_same_names_make_other_weights(self, pretrain: Command, tmp_path: Path) -> None:
        for part, number in (("train", 0), ("train", 1), ("test", 2)):
            (tmp_path / "pool" / part / "ant").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "pool" / part / "ant" / f"{number}.png")
        command = (*QUICK, "dataset=image_folder", "dataset.root=pool", "dataset.resize=8", "dataset.size=8")
        assert pretrain(*command, "pretraining.epochs=1").code == 0
        Image.new("RGB", (9, 9), "blue").save(tmp_path / "pool" / "train" / "ant" / "0.png")
        done = pretrain(*command, "pretraining.epochs=1")
        assert (done.code, "finished already" in done.out) == (0, False), done.err
        assert len([*Path("outputs").glob("*/pretraining/*")]) == 2

    def test_a_dry_run_writes_nothing(self, pretrain: Command) -> None:
        done = pretrain(*QUICK, "runtime.dry_run=true")
        assert done.code == 0, done.err
        assert "2 epochs of 4 steps, 1,437 images\nestimated time" in done.out
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize(
        ("argument", "said"),
        [
            ("pretraining.epochs=0", "pretraining.epochs=0: must be greater than or equal to 1"),
            ("pretraining.epoch=3", "pretraining.epoch=3: no such key; did you mean epochs?"),
            ("pretraining.smallest_crop=2", "pretraining.smallest_crop=2: must be less than or equal to 1"),
            ("method=random", "method=random: no such key; known: backbone, dataset, pretraining, runtime, seed"),
            ("backbone=smal_cnn", "backbone=smal_cnn: no such option; did you mean small_cnn?"),
            ("seed=-1", "seed=-1: must be greater than or equal to 0"),
            ("runtime.output_dir=/dev/null/x", "runtime.output_dir=/dev/null/x: cannot be"),
        ],
    )
    def test_a_mistake_gets_one_line(self, pretrain: Command, argument: str, said: str) -> None:
        done = pretrain(argument)
        assert done.code == 2
        assert done.err.startswith(f"sslpl: {said}"), done.err
        assert (done.err.count("\n"), done.out, list(Path().iterdir())) == (1, "", [])

    def test_help_names_every_value(self, pretrain: Command) -> None:
        done = pretrain("--help")
        assert done.code == 0
        assert all(f"  {name}: " in done.out for name in SimCLR.__dataclass_fields__)


def backbone_of(classes: int = 10, channels: int = 1, seed: int = 5) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_cnn(num_classes=classes, in_channels=channels)


def weights_file(path: Path, seed: int = 5, head: bool = False) -> Path:
    """Writes starting weights for digits without a head, as the command does."""
    weights = backbone_of(seed=seed).state_dict()
    torch.save({name: value for name, value in weights.items() if head or not name.startswith("head.")}, path)
    return path


def config_of(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(errors.CONF), version_base="1.3"):
        return jobs.compose_config(overrides)[0]


def setup_of(*overrides: str) -> Setup:
    config = config_of(*TINY, *overrides)
    return build_setup(config, instantiate(config["runtime"]))


class TestStart:
    def test_every_fresh_backbone_begins_with_the_file_and_a_head_of_its_own(self, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "backbone.pt")
        weights, plain = torch.load(path, weights_only=True), setup_of()
        begun = setup_of(f"backbone.weights={path}")
        path.unlink()  # it was read once
        for cycle in (0, 3):
            (before, module), (after, other) = plain.build(cycle), begun.build(cycle)
            assert module is not None
            assert other is not None
            for name, value in after.state_dict().items():
                assert torch.equal(value, weights[name] if name in weights else before.state_dict()[name])
            assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
            assert all(values.is_contiguous(memory_format=torch.channels_last) for values in after.parameters()
                       if values.ndim == 4)  # fmt: skip

    def test_a_head_comes_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "whole.pt", head=True)
        weights = torch.load(path, weights_only=True)
        same, fewer, half = backbone_of(seed=1), backbone_of(classes=4, seed=1), backbone_of(seed=1)
        heads = [backbone.head.weight.clone() for backbone in (fewer, half)]
        for backbone in (same, fewer):
            start_backbone(backbone, Start(str(path)))
            assert torch.equal(backbone.state_dict()["stages.0.0.0.weight"], weights["stages.0.0.0.weight"])
        del weights["head.bias"]
        torch.save(weights, path)
        start_backbone(half, Start(str(path)))
        assert torch.equal(same.head.weight, weights["head.weight"])
        assert all(map(torch.equal, heads, (fewer.head.weight, half.head.weight)))

    @pytest.mark.parametrize("frozen", [False, True])
    def test_a_finished_runs_weights_are_a_start(self, sslpl: Command, frozen: bool) -> None:
        done = sslpl(*SHORT, f"backbone.freeze={str(frozen).lower()}")
        assert done.code == 0, done.err
        path = run_folder() / "checkpoint" / "weights.pt"
        saved = torch.load(path, weights_only=True)["backbone"]
        for freeze in (False, True):  # the layer that freezes names its weights otherwise
            freezing = (f"backbone.freeze={str(freeze).lower()}", f"training.augment={str(freeze).lower()}")
            built = setup_of(f"backbone.weights={path}", *freezing).build(0)[0]
            for (name, value), (there, expected) in zip(built.state_dict().items(), saved.items(), strict=True):
                assert name.removeprefix("network.") == there.removeprefix("network.")
                assert torch.equal(value, expected)

    def test_pretrained_weights_are_a_start_of_a_frozen_run(self, sslpl: Command, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "a.pt")
        done = sslpl(*SHORT, f"backbone.weights={path}", "backbone.freeze=true")
        assert done.code == 0, done.err
        last = torch.load(run_folder() / "checkpoint" / "weights.pt", weights_only=True)["backbone"]
        for name, value in torch.load(path, weights_only=True).items():
            assert torch.equal(value, last[f"network.{name}"])

    def test_a_run_is_told_by_the_content_of_the_file_and_not_by_its_place(self, tmp_path: Path) -> None:
        def run_id(path: Path | None) -> str:
            config = config_of(*([f"backbone.weights={path}"] if path else []))
            return identity.run_id(with_fingerprints(config))

        first, copy = weights_file(tmp_path / "a.pt"), tmp_path / "b.pt"
        copy.write_bytes(first.read_bytes())
        before = run_id(first)
        assert before == run_id(copy) != run_id(None)
        weights_file(first, seed=6)
        assert run_id(first) not in (before, run_id(None))
        assert run_id(None) == identity.run_id(config_of())

    def test_a_run_is_known_again_wherever_its_weights_lie(self, sslpl: Command, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "a.pt")
        first = sslpl(*SHORT, f"backbone.weights={path}")
        assert first.code == 0, first.err
        node = yaml.safe_load((run_folder() / "config.yaml").read_text())["backbone"]
        assert node["weights"] == str(path)
        assert node["weights_fingerprint"] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        moved = path.rename(tmp_path / "b.pt")
        done = sslpl(*SHORT, f"backbone.weights={moved}")
        assert done.out.startswith("finished already"), done.err

    def test_another_content_under_the_same_name_is_another_run_and_said_so(self, sslpl: Command) -> None:
        path = weights_file(Path("a.pt"))
        done = sslpl(*SHORT, "backbone.weights=a.pt")
        assert done.code == 0, done.err
        folder = run_folder()
        pin = yaml.safe_load((folder / "config.yaml").read_text())["backbone"]["weights_fingerprint"]
        weights_file(path, seed=6)
        pinned = sslpl(*SHORT, "backbone.weights=a.pt", f"backbone.weights_fingerprint='{pin}'")
        assert pinned.code == 2
        assert pinned.err.startswith(f"sslpl: backbone.weights_fingerprint={pin}: a.pt has ")
        assert pinned.err.count("\n") == 1
        done = sslpl(*SHORT, "backbone.weights=a.pt")
        assert (done.code, "finished already" in done.out) == (0, False)
        assert f"sslpl: backbone.weights=a.pt: has changed since {folder} began" in done.err
        assert len([*folder.parent.iterdir()]) == 2
        again = sslpl(*SHORT, "backbone.weights=a.pt")
        assert (again.out.startswith("finished already"), again.err) == (True, "")

    def test_a_file_that_changes_while_a_run_begins_is_refused(self, tmp_path: Path) -> None:
        path = weights_file(tmp_path / "a.pt")
        config = with_fingerprints(config_of(*TINY, f"backbone.weights={path}"))
        weights_file(path, seed=6)
        with pytest.raises(UserError, match=r"backbone\.weights=.*a\.pt: has changed since its fingerprint was taken"):
            build_setup(config, instantiate(config["runtime"]))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "must be imagenet or a file with weights (No such file or directory)"),
            (b"no weights", "must be imagenet or a file with weights"),
            ({}, "must contain a state dict"),
            ({"epoch": 3}, "must contain a state dict"),
            (
                small_cnn(num_classes=10, in_channels=2),
                "stages.0.0.0.weight has shape [32, 2, 3, 3], not [32, 1, 3, 3]",
            ),
            ({"stages.0.0.0.weight": torch.zeros(32, 1, 3, 3)}, "stages.0.0.1.weight is missing"),
            ({**backbone_of().state_dict(), "more": torch.zeros(2)}, "this backbone has no more"),
        ],
        ids=range(7),
    )
    def test_an_unfit_file_is_refused_in_one_line(self, sslpl: Command, content: Any, said: str) -> None:
        path = Path("bad.pt")
        if content is not None:
            buffer = io.BytesIO()
            torch.save(content.state_dict() if isinstance(content, torch.nn.Module) else content, buffer)
            path.write_bytes(content if isinstance(content, bytes) else buffer.getvalue())
        done = sslpl(*TINY, "backbone.weights=bad.pt")
        assert done.code == 2
        assert done.err.startswith("sslpl: backbone.weights=bad.pt: ")
        assert said in done.err
        assert done.err.count("\n") == 1
        assert not Path("outputs").exists()

    @pytest.mark.parametrize("weights", ["null", "imagenet"])
    def test_a_fingerprint_without_a_file_is_refused(self, sslpl: Command, weights: str) -> None:
        done = sslpl(*TINY, f"backbone.weights={weights}", "backbone.weights_fingerprint=abc")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "backbone.weights_fingerprint=abc: must be null unless backbone.weights is a file" in done.err

    @pytest.mark.parametrize("argument", ["training.init=a.pt", "+training.init=a.pt", "training.init=null"])
    def test_the_key_that_it_was_once_names_the_new_one(self, sslpl: Command, argument: str) -> None:
        done = sslpl(*TINY, argument)
        assert done.code == 2
        assert done.err == f"sslpl: {argument.lstrip('+')}: no such key; it is now backbone.weights=FILE\n"

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"backbone": Path("x")}, tmp_path / "code.pt")
        with pytest.raises(UserError, match="must be imagenet or a file with weights"):
            file_weights(str(tmp_path / "code.pt"))


class TestColdStart:
    def test_a_run_begins_with_what_its_strategy_chooses(self, sslpl: Command, tmp_path: Path) -> None:
        start = (f"backbone.weights={weights_file(tmp_path / 'a.pt')}", "budget.initial_pool=query")
        done = sslpl(*SHORT, "method=typiclust", *start)
        assert done.code == 0, done.err
        with (run_folder() / "queries.csv").open() as file:
            rows = list(csv.DictReader(file))
        chosen = initial_state(setup_of("method=typiclust", *start)).pool.labeled.tolist()
        assert [int(row["index"]) for row in rows] == chosen
        assert all(row["score"] for row in rows)

    @pytest.mark.parametrize(
        "query", ["random", "typiclust", "probcover", "max_herding", "uherding", "tcm", "active_ft"]
    )
    def test_a_strategy_without_labels_sees_the_starting_weights_alone(self, tmp_path: Path, query: str) -> None:
        start = (f"backbone.weights={weights_file(tmp_path / 'a.pt')}", "budget.initial_pool=query")
        setup = setup_of(f"method={query}", *start)
        state = empty_state(setup)
        first = initial_selection(setup, state)
        assert len(first.index.unique()) == 24
        assert torch.equal(first.index, initial_selection(setup, state).index)
        context = query_context(setup, state)
        assert (len(context.labeled), len(context.unlabeled)) == (0, 1437)
        assert context.labeled_predictions.embedding.shape == (0, 256)
        expected = setup.query(context, 24, rng(0, "initial query"))
        assert torch.equal(first.index, expected.index)
        weights_file(tmp_path / "a.pt", seed=6)
        other = initial_state(setup_of(f"method={query}", *start)).pool.labeled
        assert torch.equal(first.index, other) == (query == "random")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["method=typiclust"], "backbone.weights must be imagenet or a file of weights"),
            (["method=entropy", "backbone.weights=a.pt"], "query must be a strategy that needs no labels"),
            (["method=sslpm", "backbone.weights=a.pt"], "query must be a strategy that needs no labels"),
        ],
    )
    def test_who_cannot_is_told_so(self, sslpl: Command, arguments: list[str], said: str) -> None:
        weights_file(Path("a.pt"))
        done = sslpl(*TINY, "budget.initial_pool=query", *arguments)
        assert done.code == 2
        assert done.err.startswith("sslpl: budget.initial_pool=query: ")
        assert said in done.err
        assert done.err.count("\n") == 1
