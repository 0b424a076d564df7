"""The command: python -m sslpl.predict RUN FOLDER [--output DIR] [--export] [--trust PACKAGE]."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from sslpl.files import write_whole
from sslpl.predict.export import TOLERANCE, check_packages, max_difference, onnx_model
from sslpl.predict.predictions import FilePredictions, concatenate_predictions, make_predictor, write_tables
from sslpl.predict.stream import ImageGroup, image_files, image_groups
from sslpl.predict.trained import TrainedModel, load_trained_run
from sslpl.runtime import Runtime
from sslpl.types import UserError

CHECKED = 64  # images on which an ONNX file is compared with the networks


def main() -> None:
    """Predicts, writes, exports. Exit code 2 for bad input, 1 for a network or an ONNX file that fails."""
    options = parse_arguments()
    try:
        check(options)
        trained, paths = load_trained_run(options.run, options.trust), image_files(options.folder)
        if not paths:
            raise UserError(f"{options.folder}: no image file in it")
        Runtime().set_threads(trained.signature.shape)
        predicted, sample = predict_files(trained, paths, options)
        write_tables(predicted, trained.signature, options.folder, options.output)
        print(
            f"{len(predicted.paths):,} of {len(paths):,} images: {options.output / 'predictions.csv'}, predictions.npz"
        )
        if options.export:
            export(trained, sample, options.output / "model.onnx")
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--output {options.output}: cannot be written ({error.strerror or error})")
    except torch.OutOfMemoryError:
        fail(f"out of memory: lower --batch-size {options.batch_size}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sslpl.predict",
        description="Predicts new images with the networks of a finished run, in float32 whatever the run used.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the run's folder, outputs/<dataset>/<label>/seed<k>-<id>"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images, searched with all below it")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("predictions"), help="default: predictions")
    parser.add_argument("--export", action="store_true", help="also write the networks as model.onnx, and compare it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-size", type=count, metavar="N", default=256, help="images at once (default: 256)")
    threads = min(os.cpu_count() or 1, 16)
    parser.add_argument(
        "--threads", type=count, metavar="N", default=threads, help=f"that read images (default: {threads})"
    )
    parser.add_argument(
        "--trust",
        action="append",
        metavar="PACKAGE",
        default=[],
        help="also build networks of this package, of your own; a run of somebody else's may name any code",
    )
    return parser.parse_args()


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def fail(line: str, code: int = 2) -> NoReturn:
    """Ends with an exit code."""
    print(f"sslpl: {line}", file=sys.stderr)
    sys.exit(code)


def check(options: argparse.Namespace) -> None:
    """UserError for what can be seen before anything is read."""
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder of images")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; use cpu or auto")
    nearest = next(path for path in (options.output.absolute(), *options.output.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise UserError(f"--output {options.output}: cannot be written")
    if options.export:
        check_packages()


def predict_files(
    trained: TrainedModel, paths: list[Path], options: argparse.Namespace
) -> tuple[FilePredictions, Tensor]:
    """The predictions for all files that can be read, and some of their images; names the others."""
    cuda = options.device != "cpu" and torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
    predicted_of = make_predictor(trained, torch.device("cuda" if cuda else "cpu"))
    parts: list[FilePredictions] = []
    sample = torch.empty(0, *trained.signature.shape, dtype=torch.uint8)
    for group in shown(image_groups(paths, trained.signature, options.batch_size, options.threads), len(paths)):
        for line in group.unreadable:
            print(line, file=sys.stderr)
        if group.paths:
            parts.append(predicted_of(group))
            sample = torch.cat([sample, group.images[: CHECKED - len(sample)]])
    if not parts:
        raise UserError(f"{options.folder}: none of its {len(paths):,} image files can be read")
    return concatenate_predictions(parts), sample


def shown(found: Iterator[ImageGroup], total: int) -> Iterator[ImageGroup]:
    """The groups in turn, with a bar on a terminal that says how far they are."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=total)
        for group in found:
            yield group
            progress.advance(task, len(group.paths) + len(group.unreadable))


def export(trained: TrainedModel, images: Tensor, path: Path) -> None:
    """Writes the networks as ONNX if they say the same there; otherwise ends with exit code 1, without the file."""
    on_cpu = TrainedModel(
        trained.backbone.cpu(), None if trained.module is None else trained.module.cpu(), trained.signature
    )
    path.unlink(missing_ok=True)  # of earlier networks
    try:
        model = onnx_model(on_cpu)
        gap = max_difference(model, on_cpu, images)
    except Exception as error:  # an operation that ONNX lacks, in a backbone of the user's own
        fail(f"--export: these networks cannot be written as ONNX ({' '.join(str(error).split())[:300]})", 1)
    said = f"differs from the networks by {gap:.1e} of an output's largest value, on {len(images)} images"
    if not gap <= TOLERANCE:
        fail(f"the ONNX file {said}, more than {TOLERANCE:.0e}: not written", 1)
    write_whole(path, model)
    print(f"{path}: {said}")


if __name__ == "__main__":
    main()
