"""The state of a run: everything needed to resume it, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sslpl.pool import LabelPool, without
from sslpl.types import Annotations, Predictions, Selection

Row = dict[str, float | int | None]
Weights = dict[str, Tensor]


class Ledger(NamedTuple):
    """The labels revealed so far: one entry per labeled image, in the order of labeling."""

    cycle: Tensor  # [L] int64, the first cycle that trains on the image
    index: Tensor  # type: ignore[assignment]  # [L] int64, its position in the pool
    label: Tensor  # [L] int64
    score: Tensor  # [L] float64, the query score; NaN if there is none


class LabelBatch(NamedTuple):
    """A batch of labels from human annotators."""

    cycle: int  # the first cycle that trains on them
    time: str  # UTC
    source: str  # where they were read from


class BestEpoch(NamedTuple):
    """The weights after the epoch with the highest validation accuracy so far."""

    accuracy: float
    backbone: Weights
    module: Weights | None
    average: Weights | None = None  # averaged backbone, with a task method


@dataclass
class State:
    """The state of a run: its next cycle, phase, epoch and step, its labels, its networks and its metrics."""

    pool: LabelPool
    ledger: Ledger
    excluded: Tensor  # positions excluded from the next joint training
    backbone: nn.Module
    module: nn.Module | None
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # labeled, for validation
    cycle: int = 0
    phase: str = "train"
    epoch: int = 0
    step: int = 0
    sums: Tensor | None = None  # running sums of the current epoch or phase
    optimizer: Optimizer | None = None  # of the current phase
    optimizer_state: dict[str, Any] | None = None  # from a checkpoint, until the optimizer exists
    best: BestEpoch | None = None  # during a joint training with training.checkpoint=best
    ssl: Weights | None = None  # state of a stateful SSL method, during a fine-tune
    task: Weights | None = None  # state of the unlabeled term, during a joint training
    average: Weights | None = None  # averaged backbone, during that training
    unaveraged_weights: Weights | None = None  # of the backbone, for the next joint training
    teacher: Weights | None = None  # averaged backbone, from the joint training to the fine-tune, for Mean Teacher
    selection: Selection | None = None  # queried but not labeled yet
    previous_weights: Weights | None = None  # of the previous cycle's backbone, if the strategy needs it
    snapshots: list[Weights] = field(default_factory=list)  # of the backbone during this joint training, likewise
    members: list[Weights] = field(default_factory=list)  # of an ensemble beside the backbone, to train on with
    predictions: Predictions | None = None  # of the unlabeled images, for the query; not saved but recomputed
    row: Row = field(default_factory=dict)  # metrics of the current cycle
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, of the current cycle
    images: int = 0  # seen by the joint training of the current cycle
    history: list[Row] = field(default_factory=list)  # metrics of the finished cycles
    class_names: tuple[str, ...] = ()  # known so far
    label_batches: list[LabelBatch] = field(default_factory=list)  # from human annotators
    annotations: Annotations | None = None  # the answers behind the labels, if an image has several
    labeling_seconds: float | None = None  # that people have spent on answers; None: not measured
    stop_predictions: Tensor | None = None  # classes that the last cycle's backbone predicted, for a stopping rule
    uncapturable: bool = False  # steps could not be captured as CUDA graphs in this process; not saved

    def enter(self, phase: str) -> None:
        """Starts a phase at its first step and drops the state of the previous phase."""
        self.phase, self.epoch, self.step = phase, 0, 0
        self.sums = self.optimizer = self.optimizer_state = self.ssl = self.task = None

    @property
    def train_index(self) -> Tensor:
        """Positions of the labeled images that are not held out, in the order of labeling."""
        return without(self.pool.labeled, self.held_out)

    @property
    def joint_train_index(self) -> Tensor:
        """Positions of the labeled images for the joint training: neither excluded nor held out."""
        return without(self.train_index, self.excluded)

    @property
    def num_initial_train(self) -> int:
        """The number of initial labels that are not held out."""
        return len(without(self.ledger.index[self.ledger.cycle == 0], self.held_out))

    def labels(self) -> Tensor:
        """Returns the revealed labels by position in the pool, [pool] int64; -1 if unlabeled."""
        labels = torch.full((self.pool.size,), -1)
        labels[self.ledger.index] = self.ledger.label
        return labels

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as tensors, numbers, strings and containers of them, for a checkpoint."""
        return {
            "size": self.pool.size,
            "order": self.pool.order,
            "rejected": self.pool.rejected,
            "ledger": tuple(self.ledger),
            "excluded": self.excluded,
            "held_out": self.held_out,
            "backbone": self.backbone.state_dict(),
            "module": self.module.state_dict() if self.module is not None else None,
            "position": (self.cycle, self.phase, self.epoch, self.step),
            "sums": self.sums,
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else self.optimizer_state,
            "best": tuple(self.best) if self.best is not None else None,
            "ssl": self.ssl,
            "teacher": self.teacher,
            "task": self.task,
            "average": self.average,
            "unaveraged_weights": self.unaveraged_weights,
            "selection": tuple(self.selection) if self.selection is not None else None,
            "previous_weights": self.previous_weights,
            "snapshots": self.snapshots,
            "members": self.members,
            "row": self.row,
            "seconds": self.seconds,
            "images": self.images,
            "history": self.history,
            "class_names": list(self.class_names),
            "label_batches": [tuple(batch) for batch in self.label_batches],
            "labeling_seconds": self.labeling_seconds,
            "stop_predictions": self.stop_predictions,
            "annotations": tuple(self.annotations) if self.annotations is not None else None,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restores a state saved by `to_dict`; the networks must have been built already."""
        nothing = torch.empty(0, dtype=torch.int64)
        self.pool = LabelPool(saved["size"], saved["order"], saved.get("rejected", nothing))
        self.ledger = Ledger(*saved["ledger"])
        self.excluded, self.held_out = saved["excluded"], saved["held_out"]
        self.backbone.load_state_dict(saved["backbone"])
        if self.module is not None:
            self.module.load_state_dict(saved["module"])
        self.cycle, self.phase, self.epoch, self.step = saved["position"]
        self.sums, self.optimizer, self.optimizer_state = saved["sums"], None, saved["optimizer"]
        self.best = BestEpoch(*saved["best"]) if saved["best"] is not None else None
        self.ssl, self.teacher = saved["ssl"], saved["teacher"]
        self.task, self.average = saved.get("task"), saved.get("average")
        self.unaveraged_weights = saved.get("unaveraged_weights")
        self.selection = Selection(*saved["selection"]) if saved["selection"] is not None else None
        self.previous_weights, self.snapshots = saved["previous_weights"], saved["snapshots"]
        self.members = saved.get("members", [])
        self.row, self.seconds, self.history = saved["row"], saved["seconds"], saved["history"]
        self.images, self.class_names = saved["images"], tuple(saved["class_names"])
        self.label_batches = [LabelBatch(*batch) for batch in saved["label_batches"]]
        self.labeling_seconds, self.stop_predictions = saved.get("labeling_seconds"), saved.get("stop_predictions")
        annotations = saved.get("annotations")
        self.annotations = None if annotations is None else Annotations(*annotations)


def weights_of(network: nn.Module) -> Weights:
    """Returns a copy of a network's parameters and buffers."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
