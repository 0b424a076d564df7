"""Whole runs: a short one both ways, and the published protocol on CIFAR-100."""

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks import conventional as old
from benchmarks.measure import Case, Peak, Row, measured
from benchmarks.parts import Bench, cifar_like, fashion, setup_of
from sslpl.budget import Budget
from sslpl.loop import initial_state, run_active_learning
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.training import Training
from sslpl.trimming import trim_size
from sslpl.types import Step

PHASES = ("train", "finetune", "evaluate", "query")


class Silent:
    """Watches a run and says nothing."""

    def on_phase_start(self, setup: Setup, state: State) -> None:
        """Nothing."""

    def on_step(self, state: State, step: Step) -> None:
        """Nothing."""

    def on_phase_end(self, state: State) -> None:
        """Nothing."""


class Printer(Silent):
    """Prints the numbers of each finished cycle."""

    def __init__(self) -> None:
        self.seen = 0

    def on_phase_end(self, state: State) -> None:
        """A line when a cycle is new in the history."""
        if len(state.history) > self.seen:
            self.seen, row = len(state.history), state.history[-1]
            seconds = "  ".join(f"{phase} {row[f'{phase}_seconds'] or 0:.1f} s" for phase in PHASES)
            rate = f"{row['train_images_per_second'] or 0:,.0f} images/s"
            pseudo, accuracy = row.get("pseudo_label_rate"), row["test_accuracy"]
            print(f"cycle {self.seen}: {seconds}  {rate}  accuracy {accuracy:.4f}  confident {pseudo}", flush=True)


def phases(state: State) -> dict[str, float]:
    """Seconds by phase of a finished run; labeling and trimming count as query."""
    return {phase: sum(float(row[f"{phase}_seconds"] or 0) for row in state.history) for phase in PHASES}


class ConventionalRun:
    """SSLPM as a script: the same budgets, schedule, first labels and first weights as a setup of ours."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.device, data = setup, setup.device, setup.dataset
        random.seed(setup.seed)
        torch.manual_seed(setup.seed)
        state = initial_state(setup)
        self.labeled, self.unlabeled = state.pool.labeled.tolist(), state.pool.unlabeled.tolist()
        self.trained = [position for position in self.labeled if position not in set(state.excluded.tolist())]
        self.backbone, self.module = old.networks(setup)
        train, test = data.train.data, data.test.data
        self.weak, self.pair, self.plain = (
            old.PilImages(train, data.train_labels, transform)
            for transform in (old.weak(data), old.pair(data), old.plain(data))
        )
        self.test = old.PilImages(test, data.test_labels, old.plain(data))
        self.seconds: Counter[str] = Counter()
        self.accuracy: list[float] = []

    @contextmanager
    def timed(self, phase: str):
        """Counts the seconds of a block as those of a phase."""
        since = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - since

    def run(self) -> "ConventionalRun":
        """All cycles."""
        cycles = self.setup.budget.cycles
        for cycle in range(cycles):
            trainer = old.Trainer(self.backbone, self.module, self.setup.training, self.device)
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

    def train(self, trainer: old.Trainer) -> None:
        """Joint training."""
        loader = old.shuffled_loader(self.weak, self.trained, self.setup.training.batch_size)
        for epoch in range(self.setup.training.epochs):
            trainer.train_epoch(loader, epoch)

    def finetune(self, trainer: old.Trainer) -> None:
        """The module's fine-tune."""
        training = self.setup.training
        many = len(self.unlabeled) // (len(self.labeled) // training.batch_size + 1) // 2 * 2
        trainer.start_finetune()
        labeled = old.shuffled_loader(self.weak, self.labeled, training.batch_size)
        unlabeled = old.shuffled_loader(self.pair, self.unlabeled, min(many, training.unlabeled_batch_limit))
        for _ in range(training.finetune_epochs):
            for (images, labels), (views, _hidden) in zip(labeled, unlabeled, strict=False):
                trainer.finetune_step(images, labels, views, 0.9)

    def predictions(self, images: old.PilImages, index):
        """What the networks say of the images at `index`."""
        return old.predictions(self.backbone, self.module, old.ordered_loader(images, index), self.device)

    def query(self, trim: bool) -> None:
        """Scores, clusters, labels, trims: two passes over the candidates, as published."""
        budget = self.setup.budget
        predicted = self.predictions(self.plain, self.unlabeled)[2]
        best = torch.argsort(predicted, descending=True)[: int(budget.candidates)].tolist()
        candidates = [self.unlabeled[position] for position in best]
        embedding = self.predictions(self.plain, candidates)[1]
        cluster = old.clustered(embedding.numpy(), int(budget.per_cycle))
        picked = [candidates[position] for position in np.unique(cluster, return_index=True)[1]]
        half = trim_size(int(budget.initial)) // 2 if trim else 0
        self.trained = [*self.hardest(self.labeled, half), *self.hardest(picked, half)]
        self.labeled = [*self.labeled, *picked]
        self.unlabeled = sorted(set(self.unlabeled) - set(self.labeled))

    def hardest(self, index: list[int], less: int) -> list[int]:
        """The images without so many of the lowest true loss."""
        logits, _, _, labels = self.predictions(self.plain, index)
        order = torch.argsort(cross_entropy(logits, labels, reduction="none"))
        return [index[position] for position in order[less:].tolist()]


def whole_run(bench: Bench) -> Row:
    """The published protocol in small (two cycles, a tenth of the epochs), both ways; each repetition has its seed."""
    sizes = bench.sizes
    dataset, source = fashion(bench, sizes.run_pool, sizes.run_test)
    tuned = max(1, round(0.15 * sizes.run_epochs))  # 30 of 200 as published
    training = Training(epochs=sizes.run_epochs, finetune_epochs=tuned, batch_size=64)
    budget = Budget(sizes.run_labels, sizes.run_labels, 2, 0.5)
    done: dict[str, list] = {"ours": [], "baseline": []}

    def setup_for(side: str) -> Setup:
        return setup_of(dataset, bench.device, training, budget, seed=len(done[side]))

    def ours() -> None:
        setup = setup_for("ours")
        state = run_active_learning(setup, initial_state(setup), Silent())
        accuracy = [float(row["test_accuracy"]) for row in state.history]
        done["ours"].append((accuracy, phases(state)))

    def baseline() -> None:
        run = ConventionalRun(setup_for("baseline")).run()
        done["baseline"].append((run.accuracy, dict(run.seconds)))

    def extra(_row: Row, _ours: object, _baseline: object) -> Row:
        return {"images": source, "labels": sizes.run_labels * 2} | by_side(done, "ours") | by_side(done, "baseline")

    return measured(
        "whole_run", Case(ours, baseline, repeats=1, warm_up=False, extra=extra), bench.device, bench.repeats
    )


def by_side(done: dict[str, list], side: str) -> Row:
    """Mean accuracy after each cycle, last accuracy of each repetition, mean seconds by phase."""
    accuracy = np.array([accuracy for accuracy, _ in done[side]])
    seconds = {phase: float(np.mean([phases[phase] for _, phases in done[side]])) for phase in PHASES}
    return {
        f"{side}_accuracy": float(accuracy[:, -1].mean()),
        f"{side}_accuracies": accuracy.tolist(),
        f"{side}_phases": seconds,
    }


def protocol(bench: Bench) -> Row:
    """The published protocol on CIFAR-100 (real images, or random ones of the same kind): ours, start to end."""
    dataset, source = cifar_like(bench, bench.pool, max(100, bench.pool // 5))
    training = Training(epochs=bench.epochs, finetune_epochs=bench.finetune_epochs)
    budget = Budget(initial=0.05, per_cycle=0.05, cycles=bench.cycles, candidates=0.5)
    setup = setup_of(dataset, bench.device, training, budget)
    print(f"protocol: {bench.pool:,} {source}, {setup.budget}", flush=True)
    since = time.perf_counter()
    with Peak(bench.device) as peak:
        state = run_active_learning(setup, initial_state(setup), Printer())
    total = time.perf_counter() - since
    row: Row = {"name": "protocol", "baseline_seconds": None, "ours_seconds": total, "ratio": None}
    images = sum(int(row["labeled"] or 0) for row in state.history) * bench.epochs
    return row | {
        "ours_peak_mib": peak.added / 2**20,
        "images": source,
        "images_per_second": images / phases(state)["train"],
        "ours_phases": phases(state),
        "cycles": state.history,
    }


RUNS: dict[str, Callable[[Bench], Row]] = {"whole_run": whole_run, "protocol": protocol}
