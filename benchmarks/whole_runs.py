"""Benchmarks of whole runs: a short one with both implementations, and the published protocol on CIFAR-100."""

import random
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks import conventional
from benchmarks.measure import Case, PeakMemory, Row, compare
from benchmarks.setups import BenchmarkOptions, cifar_like, fashion_like, make_setup
from sslpl.budget import Budget
from sslpl.loop import initial_state, run_active_learning
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.training import Training
from sslpl.trimming import trim_size
from sslpl.types import Step

PHASES = ("train", "finetune", "evaluate", "query")


class Silent:
    """An observer of a run that does nothing."""

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Does nothing."""

    def on_step(self, state: State, step: Step) -> None:
        """Does nothing."""

    def on_phase_end(self, state: State) -> None:
        """Does nothing."""


class Printer(Silent):
    """An observer that prints the metrics of each finished cycle."""

    def __init__(self) -> None:
        self.printed = 0

    def on_phase_end(self, state: State) -> None:
        """Prints a line if a cycle has finished."""
        if len(state.history) > self.printed:
            self.printed, row = len(state.history), state.history[-1]
            seconds = "  ".join(f"{phase} {row[f'{phase}_seconds'] or 0:.1f} s" for phase in PHASES)
            rate = f"{row['train_images_per_second'] or 0:,.0f} images/s"
            pseudo, accuracy = row.get("pseudo_label_rate"), row["test_accuracy"]
            print(f"cycle {self.printed}: {seconds}  {rate}  accuracy {accuracy:.4f}  confident {pseudo}", flush=True)


def phase_seconds(state: State) -> dict[str, float]:
    """Returns the seconds of a finished run by phase; labeling and trimming count as query."""
    return {phase: sum(float(row[f"{phase}_seconds"] or 0) for row in state.history) for phase in PHASES}


class ConventionalRun:
    """SSLPM as a conventional script, with the budget, schedule, initial labels and initial weights of a setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.device, data = setup, setup.device, setup.dataset
        random.seed(setup.seed)
        torch.manual_seed(setup.seed)
        state = initial_state(setup)
        self.labeled, self.unlabeled = state.pool.labeled.tolist(), state.pool.unlabeled.tolist()
        self.trained = [position for position in self.labeled if position not in set(state.excluded.tolist())]
        self.backbone, self.module = conventional.build_networks(setup)
        train, test = data.train.data, data.test.data
        self.weak, self.pair, self.unaugmented = (
            conventional.PilImages(train, data.train_labels, transform)
            for transform in (conventional.weak(data), conventional.pair(data), conventional.normalize(data))
        )
        self.test = conventional.PilImages(test, data.test_labels, conventional.normalize(data))
        self.seconds: Counter[str] = Counter()
        self.accuracy: list[float] = []

    @contextmanager
    def timed(self, phase: str):
        """Adds the seconds of a block to those of a phase."""
        since = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - since

    def run(self) -> "ConventionalRun":
        """Runs all cycles."""
        cycles = self.setup.budget.cycles
        for cycle in range(cycles):
            trainer = conventional.Trainer(self.backbone, self.module, self.setup.training, self.device)
            with self.timed("train"):
                self.train(trainer)
            if cycle < cycles - 1:
                with self.timed("finetune"):
                    self.finetune(trainer)
            with self.timed("evaluate"):
                logits, _, _, labels = self.predictions(self.test, range(len(self.test)))
                self.accuracy.append(float((logits.argmax(dim=1) == labels).double().mean()))
            if cycle < cycles - 1:
                with self.timed("query"):
                    self.query(trim=cycle < cycles - 2)
        return self

    def train(self, trainer: conventional.Trainer) -> None:
        """Trains backbone and module jointly."""
        loader = conventional.shuffled_loader(self.weak, self.trained, self.setup.training.batch_size)
        for epoch in range(self.setup.training.epochs):
            trainer.train_epoch(loader, epoch)

    def finetune(self, trainer: conventional.Trainer) -> None:
        """Fine-tunes the module."""
        training = self.setup.training
        many = len(self.unlabeled) // (len(self.labeled) // training.batch_size + 1) // 2 * 2
        trainer.start_finetune()
        labeled = conventional.shuffled_loader(self.weak, self.labeled, training.batch_size)
        unlabeled = conventional.shuffled_loader(self.pair, self.unlabeled, min(many, training.unlabeled_batch_limit))
        for _ in range(training.finetune_epochs):
            for (images, labels), (views, _hidden) in zip(labeled, unlabeled, strict=False):
                trainer.finetune_step(images, labels, views, 0.9)

    def predictions(self, images: conventional.PilImages, index):
        """Returns the predictions for the images at `index`."""
        return conventional.predictions(
            self.backbone, self.module, conventional.ordered_loader(images, index), self.device
        )

    def query(self, trim: bool) -> None:
        """Scores, clusters, labels and trims, with two passes over the candidates, as published."""
        budget = self.setup.budget
        predicted = self.predictions(self.unaugmented, self.unlabeled)[2]
        best = torch.argsort(predicted, descending=True)[: int(budget.candidates)].tolist()
        candidates = [self.unlabeled[position] for position in best]
        embedding = self.predictions(self.unaugmented, candidates)[1]
        cluster = conventional.complete_linkage(embedding.numpy(), int(budget.per_cycle))
        selected = [candidates[position] for position in np.unique(cluster, return_index=True)[1]]
        half = trim_size(int(budget.initial)) // 2 if trim else 0
        self.trained = [*self.highest_loss(self.labeled, half), *self.highest_loss(selected, half)]
        self.labeled = [*self.labeled, *selected]
        self.unlabeled = sorted(set(self.unlabeled) - set(self.labeled))

    def highest_loss(self, index: list[int], dropped: int) -> list[int]:
        """Returns the images without the `dropped` ones of lowest true loss."""
        logits, _, _, labels = self.predictions(self.unaugmented, index)
        order = torch.argsort(cross_entropy(logits, labels, reduction="none"))
        return [index[position] for position in order[dropped:].tolist()]


def whole_run(bench: BenchmarkOptions) -> Row:
    """Compares a short version of the published protocol (two cycles, a tenth of the epochs), a new seed each time."""
    sizes = bench.sizes
    dataset, source = fashion_like(bench, sizes.run_pool, sizes.run_test)
    tuned = max(1, round(0.15 * sizes.run_epochs))  # 30 of 200 as published
    training = Training(epochs=sizes.run_epochs, finetune_epochs=tuned, batch_size=64)
    budget = Budget(sizes.run_labels, sizes.run_labels, 2, 0.5)
    done: dict[str, list] = {"ours": [], "baseline": []}

    def setup_for(side: str) -> Setup:
        return make_setup(dataset, bench.device, training, budget, seed=len(done[side]))

    def ours() -> None:
        setup = setup_for("ours")
        state = run_active_learning(setup, initial_state(setup), Silent())
        accuracy = [float(row["test_accuracy"]) for row in state.history]
        done["ours"].append((accuracy, phase_seconds(state)))

    def baseline() -> None:
        run = ConventionalRun(setup_for("baseline")).run()
        done["baseline"].append((run.accuracy, dict(run.seconds)))

    def extra(_row: Row, _ours: object, _baseline: object) -> Row:
        return (
            {"images": source, "labels": sizes.run_labels * 2}
            | side_results(done, "ours")
            | side_results(done, "baseline")
        )

    return compare(
        "whole_run", Case(ours, baseline, repeats=1, warm_up=False, extra=extra), bench.device, bench.repeats
    )


def side_results(done: dict[str, list], side: str) -> Row:
    """Returns the mean final accuracy, the accuracies by repetition and cycle, and the mean seconds by phase."""
    accuracy = np.array([accuracy for accuracy, _ in done[side]])
    seconds = {phase: float(np.mean([phases[phase] for _, phases in done[side]])) for phase in PHASES}
    return {
        f"{side}_accuracy": float(accuracy[:, -1].mean()),
        f"{side}_accuracies": accuracy.tolist(),
        f"{side}_phases": seconds,
    }


def protocol(bench: BenchmarkOptions) -> Row:
    """Measures the published protocol on CIFAR-100, or synthetic images of its shape, from start to end; ours only."""
    dataset, source = cifar_like(bench, bench.pool, max(100, bench.pool // 5))
    training = Training(epochs=bench.epochs, finetune_epochs=bench.finetune_epochs)
    budget = Budget(initial=0.05, per_cycle=0.05, cycles=bench.cycles, candidates=0.5)
    setup = make_setup(dataset, bench.device, training, budget)
    print(f"protocol: {bench.pool:,} {source}, {setup.budget}", flush=True)
    since = time.perf_counter()
    with PeakMemory(bench.device) as peak:
        state = run_active_learning(setup, initial_state(setup), Printer())
    total = time.perf_counter() - since
    row: Row = {"name": "protocol", "baseline_seconds": None, "ours_seconds": total, "ratio": None}
    images = sum(int(row["labeled"] or 0) for row in state.history) * bench.epochs
    return row | {
        "ours_peak_mib": peak.added / 2**20,
        "images": source,
        "images_per_second": images / phase_seconds(state)["train"],
        "ours_phases": phase_seconds(state),
        "cycles": state.history,
    }
