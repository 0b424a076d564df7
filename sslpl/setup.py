"""What does not change during a run: data, networks to build, losses, strategy, budget, device."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.budget import Budget
from sslpl.data.augmentation import Augmentation
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.oracle.oracles import SimulatedOracle
from sslpl.query.context import Needs
from sslpl.schedule import Schedule
from sslpl.ssl.task import TaskSSL
from sslpl.training import Training
from sslpl.types import Dataset, Oracle, QueryStrategy

RankingLoss = Callable[..., Tensor]  # predicted [B], target [B], perhaps weight=[B] -> []
SSLMethod = Callable[..., Any]  # weak logits -> PseudoLabel; or the class of one with a state, built when it begins


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
    capture_steps: bool = False  # training steps are captured as CUDA graphs, without a task method
    oracle: Oracle = SimulatedOracle()
    folder: Path = Path()  # of the run, where an oracle leaves what it asks
    world: World = SINGLE_PROCESS  # the processes that share the run
    announce: Callable[[str], None] = print  # shows a line

    @property
    def true_labels(self) -> Tensor:
        """Classes [N] of the pool's images, those that an oracle tells wrong too: for analysis alone."""
        data = self.dataset
        return data.train_labels if data.true_labels is None else data.true_labels

    @property
    def has_unknown_labels(self) -> bool:
        """Whether people are asked: there are images whose class nobody has told yet."""
        return bool((self.dataset.train_labels < 0).any())

    def with_class_names(self, class_names: tuple[str, ...]) -> "Setup":
        """The same with the classes that are known by now, if these have become more."""
        if len(class_names) <= len(self.dataset.class_names):
            return self
        dataset = self.dataset._replace(class_names=class_names)
        return self._replace(dataset=dataset, build=partial(self.build, classes=len(class_names)))

    @property
    def weak_views(self) -> int:
        """How many weak views of an unlabeled image the SSL method wants."""
        return int(self._ssl_attribute("views", 1))

    @property
    def teacher_decay(self) -> float | None:
        """How slowly a teacher follows the backbone in joint training; None without one."""
        decay: float | None = self._ssl_attribute("teacher_decay", None)
        return decay

    def _ssl_attribute(self, name: str, otherwise: Any) -> Any:
        return getattr(self.ssl.func if isinstance(self.ssl, partial) else self.ssl, name, otherwise)

    def schedule(self, has_module: bool) -> Schedule:
        """The phases of each cycle, with or without a loss prediction module."""
        return Schedule(self.budget.cycles, self.training, has_module)

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which networks run forward."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)
