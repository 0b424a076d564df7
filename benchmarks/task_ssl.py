"""Compares a FixMatch step to its forward and backward pass alone: python benchmarks/task_ssl.py [--batch N].

A step draws, loads and augments its images, pseudo-labels, passes labeled, weak and strong views forward and backward
through ResNet-18, updates the weights and averages them. The share is its speed relative to the two passes alone on the
same number of images; both are timed alternately in one process.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks this checkout, not an installed package
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch.nn.functional import cross_entropy

from benchmarks.measure import Case, Row, compare
from benchmarks.setups import make_setup, synthetic
from sslpl.budget import Budget
from sslpl.loop import initial_state
from sslpl.phases.train import train
from sslpl.runtime import Runtime
from sslpl.setup import Setup
from sslpl.ssl.backbone_loss import TaskSSL
from sslpl.ssl.rules import pseudo_label_hard
from sslpl.training import Training

STEPS = 4  # per epoch, so that the draws made once per epoch are included


def fixmatch_setup(device: torch.device, batch: int, pool: int) -> Setup:
    """Returns a setup of ResNet-18 without a module, FixMatch as published and synthetic images."""
    method = TaskSSL(partial(pseudo_label_hard, threshold=0.95))
    training = Training(epochs=10**6, batch_size=batch, rate=0.03, trim=False)
    dataset = synthetic(STEPS * batch + pool, 8, 10)
    setup = make_setup(dataset, device, training, Budget(STEPS * batch, 1, 1, 1.0))
    return setup._replace(task_ssl=method, build=lambda cycle: (setup.build(cycle)[0], None))


def task_step(device: torch.device, batch: int, pool: int, repeats: int) -> Row:
    """Measures the seconds of a step and of its two passes alone, and the share of their speed."""
    setup = fixmatch_setup(device, batch, pool)
    steps, network = train(setup, initial_state(setup)), setup.build(0)[0].train()
    count = batch * (1 + 2 * 7)
    images = next(iter(setup.dataset.train.batches([torch.arange(count)])))
    views, labels = setup.augmentation.normalize(images), setup.dataset.train_labels[:count].to(device)

    def passes() -> None:
        network.zero_grad(set_to_none=True)
        with setup.autocast():
            logits = network(views).logits
        cross_entropy(logits.float(), labels).backward()

    row = compare("task_step", Case(lambda: next(steps), passes, (STEPS, STEPS), repeats), device)
    return row | {"share": row["ratio"], "images_per_step": count}


def main() -> int:
    """Prints the share, and writes the row with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="labeled images of a step (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=10_000, help="unlabeled images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of torch (default: as torch chooses)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the row")
    arguments = parser.parse_args()
    device = Runtime(device=arguments.device).prepare()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    row = task_step(device, arguments.batch, arguments.pool, arguments.repeats)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(row, indent=1) + "\n")
    print(
        f"{row['images_per_step']} images a step: {row['ours_seconds']:.3g} s, forward and backward alone "
        f"{row['baseline_seconds']:.3g} s: {row['share']:.0%} of their speed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
