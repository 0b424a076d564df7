"""What a run is at any moment: everything that resuming needs, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sslpl.pool import LabelPool, without
from sslpl.types import Predictions, Selection

Row = dict[str, float | int | None]
Weights = dict[str, Tensor]


class Ledger(NamedTuple):
    """One entry per labeled image, in the order of labeling."""

    cycle: Tensor  # [L] int64, the first cycle that trains on it
    index: Tensor  # type: ignore[assignment]  # [L] int64, its position in the pool
    label: Tensor  # [L] int64
    score: Tensor  # [L] float64, NaN without one


class LabelBatch(NamedTuple):
    """A batch of labels that people told."""

    cycle: int  # the first that trains on them
    time: str  # in UTC
    source: str


class BestEpoch(NamedTuple):
    """The networks as they were after the epoch of highest validation accuracy so far."""

    accuracy: float
    backbone: Weights
    module: Weights | None
    average: Weights | None = None  # of the backbone, with a task method


@dataclass
class State:
    """Where a run stands: cycle, phase, epoch and step of what comes next, and all that was learned so far."""

    pool: LabelPool
    ledger: Ledger
    excluded: Tensor  # positions that the next joint training leaves out
    backbone: nn.Module
    module: nn.Module | None
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # labeled, to validate on
    cycle: int = 0
    phase: str = "train"
    epoch: int = 0
    step: int = 0
    sums: Tensor | None = None  # running sums of the epoch or phase under way
    optimizer: Optimizer | None = None  # of the phase under way
    optimizer_state: dict[str, Any] | None = None  # of the phase that a checkpoint interrupted
    best: BestEpoch | None = None  # during a joint training that ends with its best networks
    ssl: Weights | None = None  # of an SSL method with a state, during a fine-tune
    task: Weights | None = None  # of the unlabeled term of a joint training under way
    average: Weights | None = None  # of the backbone over that training
    unaveraged_weights: Weights | None = None  # of the backbone, to train on from, while it has averaged ones
    teacher: Weights | None = None  # averaged backbone, from the training to the fine-tune, for a method that asks
    selection: Selection | None = None  # queried, not labeled yet
    previous_weights: Weights | None = None  # of the backbone in the cycle before, if the strategy needs it
    snapshots: list[Weights] = field(default_factory=list)  # of the backbone in this cycle's training, likewise
    predictions: Predictions | None = None  # of the unlabeled images, for the query; not saved: computed again
    row: Row = field(default_factory=dict)  # numbers of the cycle under way
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, of the cycle under way
    images: int = 0  # that the joint training of the cycle under way has seen
    history: list[Row] = field(default_factory=list)  # finished cycles
    class_names: tuple[str, ...] = ()  # known so far
    label_batches: list[LabelBatch] = field(default_factory=list)  # what people told
    uncapturable: bool = False  # steps cannot be CUDA graphs, as this process has found out; not saved

    def enter(self, phase: str) -> None:
        """Moves on to another phase, which starts with nothing done."""
        self.phase, self.epoch, self.step = phase, 0, 0
        self.sums = self.optimizer = self.optimizer_state = self.ssl = self.task = None

    @property
    def train_index(self) -> Tensor:
        """Positions of the labeled images that networks may learn from, in the order of their labeling."""
        return without(self.pool.labeled, self.held_out)

    @property
    def num_initial_train(self) -> int:
        """How many of the initial labels networks learn from."""
        return len(without(self.ledger.index[self.ledger.cycle == 0], self.held_out))

    def labels(self) -> Tensor:
        """Revealed classes by position in the pool, [pool] int64; -1 where hidden."""
        labels = torch.full((self.pool.size,), -1)
        labels[self.ledger.index] = self.ledger.label
        return labels

    def to_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers, strings and containers of them, fit for a checkpoint."""
        return {
            "size": self.pool.size,
            "order": self.pool.order,
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
            "row": self.row,
            "seconds": self.seconds,
            "images": self.images,
            "history": self.history,
            "class_names": list(self.class_names),
            "label_batches": [tuple(batch) for batch in self.label_batches],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` returned, into the networks that are there."""
        self.pool = LabelPool(saved["size"], saved["order"])
        self.ledger = Ledger(*saved["ledger"])
        self.excluded, self.held_out = saved["excluded"], saved["held_out"]
        self.backbone.load_state_dict(saved["backbone"])
        if self.module is not None:
            self.module.load_state_dict(saved["module"])
        self.cycle, self.phase, self.epoch, self.step = saved["position"]
        self.sums, self.optimizer, self.optimizer_state = saved["sums"], None, saved["optimizer"]
        self.best = BestEpoch(*saved["best"]) if saved["best"] is not None else None
        self.ssl, self.teacher = saved["ssl"], saved["teacher"]
        self.task, self.average, self.unaveraged_weights = (
            saved.get("task"),
            saved.get("average"),
            saved.get("unaveraged_weights"),
        )
        self.selection = Selection(*saved["selection"]) if saved["selection"] is not None else None
        self.previous_weights, self.snapshots = saved["previous_weights"], saved["snapshots"]
        self.row, self.seconds, self.history = saved["row"], saved["seconds"], saved["history"]
        self.images, self.class_names = saved["images"], tuple(saved["class_names"])
        self.label_batches = [LabelBatch(*batch) for batch in saved["label_batches"]]


def weights_of(network: nn.Module) -> Weights:
    """A copy of a network's parameters and buffers."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
