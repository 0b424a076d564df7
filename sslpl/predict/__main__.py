"""The command python -m sslpl.predict RUN FOLDER [--output DIR] [--export] [--trust PACKAGE]."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from sslpl.files import write_whole
from sslpl.messages import exit_with_error
from sslpl.predict.export import TOLERANCE, check_packages, max_difference, onnx_model
from sslpl.predict.predictions import FilePredictions, concatenate_predictions, make_predictor, write_tables
from sslpl.predict.stream import ImageGroup, image_files, image_groups
from sslpl.predict.trained import TrainedModel, load_trained_run
from sslpl.runtime import Runtime
from sslpl.types import UserError

SAMPLE_SIZE = 64  # images on which an ONNX file is compared with the networks


def main() -> None:
    """Predicts, writes the tables and exports; exit code 2 for bad input, 1 for a network or export that fails."""
    options = parse_arguments()
    try:
        check_arguments(options)
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
        exit_with_error(str(error))
    except OSError as error:
        exit_with_error(f"--output {options.output}: cannot be written ({error.strerror or error})")
    except torch.OutOfMemoryError:
        exit_with_error(f"out of memory: lower --batch-size {options.batch_size}", 1)
    except KeyboardInterrupt:
        exit_with_error("interrupted", 130)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
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
    parser.add_argument("--batch-size", type=positive_int, metavar="N", default=256, help="default: 256 images")
    threads = min(os.cpu_count() or 1, 16)
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", default=threads, help=f"that read images (default: {threads})"
    )
    parser.add_argument(
        "--trust",
        action="append",
        metavar="PACKAGE",
        default=[],
        help="also build networks of this package, of your own; a run of somebody else's may name any code",
    )
    return parser.parse_args()


def positive_int(text: str) -> int:
    """Parses a whole number of at least 1; ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def check_arguments(options: argparse.Namespace) -> None:
    """Raises UserError for mistakes that are visible before anything is read."""
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
    """Returns the predictions for all readable files and up to SAMPLE_SIZE of their images; prints the others."""
    cuda = options.device != "cpu" and torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = False  # TF32 would round float32
    predict = make_predictor(trained, torch.device("cuda" if cuda else "cpu"))
    parts: list[FilePredictions] = []
    sample = torch.empty(0, *trained.signature.shape, dtype=torch.uint8)
    for group in with_progress(image_groups(paths, trained.signature, options.batch_size, options.threads), len(paths)):
        for line in group.unreadable:
            print(line, file=sys.stderr)
        if group.paths:
            parts.append(predict(group))
            sample = torch.cat([sample, group.images[: SAMPLE_SIZE - len(sample)]])
    if not parts:
        raise UserError(f"{options.folder}: none of its {len(paths):,} image files can be read")
    return concatenate_predictions(parts), sample


def with_progress(groups: Iterator[ImageGroup], total: int) -> Iterator[ImageGroup]:
    """Yields the groups and shows a progress bar over `total` images on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=total)
        for group in groups:
            yield group
            progress.advance(task, len(group.paths) + len(group.unreadable))


def export(trained: TrainedModel, images: Tensor, path: Path) -> None:
    """Writes the networks as ONNX if its outputs match theirs; otherwise exits with code 1 and writes no file."""
    on_cpu = TrainedModel(
        trained.backbone.cpu(), None if trained.module is None else trained.module.cpu(), trained.signature
    )
    path.unlink(missing_ok=True)  # it may be that of another run
    try:
        model = onnx_model(on_cpu)
        difference = max_difference(model, on_cpu, images)
    except Exception as error:  # an operation that ONNX lacks, in a backbone of the user's own
        exit_with_error(f"--export: these networks cannot be written as ONNX ({' '.join(str(error).split())[:300]})", 1)
    result = f"differs from the networks by {difference:.1e} of an output's largest value, on {len(images)} images"
    if not difference <= TOLERANCE:  # also for NaN
        exit_with_error(f"the ONNX file {result}, more than {TOLERANCE:.0e}: not written", 1)
    write_whole(path, model)
    print(f"{path}: {result}")


if __name__ == "__main__":
    main()
