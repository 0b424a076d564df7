"""What does not change during a run: data, networks to build, losses, strategy, budget, device."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.data.augment import Augmentation
from sslpl.learn.task import TaskSSL
from sslpl.oracle.oracles import Simulated
from sslpl.pool import Budget
from sslpl.processes import ALONE, World
from sslpl.query.context import Needs
from sslpl.types import (
    Count,
    CountOrZero,
    Dataset,
    Oracle,
    Positive,
    PositiveOrZero,
    QueryStrategy,
    Share,
    ShareBelowOne,
)

RankingLoss = Callable[..., Tensor]  # predicted [B], target [B], perhaps weight=[B] -> []
SSLMethod = Callable[..., Any]  # weak logits -> PseudoLabel; or the class of one with a state, built when it begins


@dataclass(frozen=True)
class Training:
    """How the networks learn; the defaults are SSLPM's published code."""

    epochs: Count = 200
    finetune_epochs: CountOrZero = 30
    finetune_last: bool = False  # fine-tune after the last cycle too (SCAL)
    batch_size: Count = 128
    rate: Positive = 0.1
    module_rate: Positive = 0.05
    finetune_rate: Positive = 0.01
    momentum: ShareBelowOne = 0.9
    weight_decay: PositiveOrZero = 5e-4
    ranking_weight: PositiveOrZero = 1.0
    decay_at: Sequence[Share] = (0.8,)  # from epoch >= share x epochs on ...
    decay_factor: Positive = 0.1  # ... the rates are multiplied by this
    decay_early: CountOrZero = 0  # epochs by which the decay comes earlier (1: Learning Loss)
    detach_after: Share = 0.6  # from epoch > share x epochs on, the module does not reach the backbone
    unlabeled_batch_limit: Count = 1536  # an unlabeled batch of the fine-tune is at most this
    warm_start: bool = True  # networks keep their weights into the next cycle
    trim: bool = True  # leave the easiest images out of the joint training
    checkpoint: Literal["last", "best"] = (
        "last"  # the epoch of joint training whose networks go on; best: in validation
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def decay(self, epoch: int) -> float:
        """By what the rates are multiplied in an epoch (from 0)."""
        passed = sum(epoch >= share * self.epochs - self.decay_early for share in self.decay_at)
        return self.decay_factor**passed

    def snapshot_epochs(self, count: int) -> set[int]:
        """The epochs (from 0) after which a snapshot is kept: evenly spaced over the second half, the last included."""
        return {self.epochs - 1 - k * self.epochs // (2 * count) for k in range(count)}

    def detached(self, epoch: int) -> bool:
        """Whether the module's gradient stops before the backbone in an epoch (from 0)."""
        return epoch > self.detach_after * self.epochs


class Setup(NamedTuple):
    """One run's fixed parts."""

    dataset: Dataset
    build: Callable[..., tuple[nn.Module, nn.Module | None]]  # fresh networks for a cycle, on the device
    augmentation: Augmentation
    ranking: RankingLoss
    ssl: SSLMethod | None
    query: QueryStrategy
    budget: Budget  # in images
    training: Training
    seed: int
    device: torch.device
    bfloat16: bool
    needs: Needs = Needs()  # of the query strategy
    task_ssl: TaskSSL | None = None  # how the backbone learns from unlabeled images
    captures: bool = False  # training steps are captured as CUDA graphs, without a task method
    oracle: Oracle = Simulated()
    folder: Path = Path()  # of the run, where an oracle leaves what it asks
    world: World = ALONE  # the processes that share the run
    announce: Callable[[str], None] = print  # shows a line

    @property
    def true_labels(self) -> Tensor:
        """Classes [N] of the pool's images, those that an oracle tells wrong too: for analysis alone."""
        data = self.dataset
        return data.train_labels if data.true_labels is None else data.true_labels

    @property
    def asks(self) -> bool:
        """Whether people are asked: there are images whose class nobody has told yet."""
        return bool((self.dataset.train_labels < 0).any())

    def knowing(self, class_names: tuple[str, ...]) -> "Setup":
        """The same with the classes that are known by now, if these have become more."""
        if len(class_names) <= len(self.dataset.class_names):
            return self
        dataset = self.dataset._replace(class_names=class_names)
        return self._replace(dataset=dataset, build=partial(self.build, classes=len(class_names)))

    @property
    def weak_views(self) -> int:
        """How many weak views of an unlabeled image the SSL method wants."""
        return int(self._ssl_asks("views", 1))

    @property
    def teacher_decay(self) -> float | None:
        """How slowly a teacher follows the backbone in joint training; None without one."""
        decay: float | None = self._ssl_asks("teacher_decay", None)
        return decay

    def _ssl_asks(self, name: str, otherwise: Any) -> Any:
        return getattr(self.ssl.func if isinstance(self.ssl, partial) else self.ssl, name, otherwise)

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which networks run forward."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)


class Step(NamedTuple):
    """What a phase reports after each of its steps; the state it leaves can be saved there."""

    images: int
    metrics: dict[str, float] | None = None  # at the end of an epoch, for the tracker
