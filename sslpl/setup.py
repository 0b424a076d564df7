"""The fixed components of a run: data, network builder, losses, query strategy, budget, device."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.budget import Budget
from sslpl.data.augmentation import Augmentation
from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.models.embedding_head import EmbeddingProbe
from sslpl.oracle.oracles import SimulatedOracle
from sslpl.query.context import Needs
from sslpl.schedule import Schedule
from sslpl.ssl.task_method import TaskMethod
from sslpl.training import Training
from sslpl.turns import ALONE, Turns
from sslpl.types import UNLABELED, Dataset, Oracle, QueryStrategy

RankingLoss = Callable[..., Tensor]  # predicted [B], target [B], optionally weight=[B] -> []
SSLMethod = Callable[..., Any]  # weak logits -> PseudoLabel, or the class of a stateful method


class EmbeddedImages(NamedTuple):
    """The images of a run on their embeddings, and the whole network with the frozen backbone that embedded them."""

    images: Dataset
    network: EmbeddingProbe


class Acceleration(NamedTuple):
    """What makes the steps of joint training faster on a GPU."""

    fused_norms: bool = False  # batch norm, residual sum and ReLU by one operation
    copied_weights: bool = False  # one kernel casts the weights of all convolutions
    overlap: bool = False  # gradients of weights and levels of the module on streams of their own


def acceleration_on(device: torch.device) -> Acceleration:
    """Returns all acceleration that a device has: none on a CPU; fused operations need Triton."""
    on_gpu = device.type == "cuda"
    return Acceleration(on_gpu and find_spec("triton") is not None, on_gpu, on_gpu)


class Setup(NamedTuple):
    """The fixed components of a run."""

    dataset: Dataset
    build: Callable[..., tuple[nn.Module, nn.Module | None]]  # new networks for a cycle (and member), on the device
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
    task_ssl: TaskMethod | None = None  # semi-supervised training of the backbone
    capture_steps: bool = False  # capture training steps as CUDA graphs; those with a task method are not
    acceleration: Acceleration = Acceleration()
    oracle: Oracle = SimulatedOracle()
    folder: Path = Path()  # of the run, where an oracle writes its requests
    world: World = SINGLE_PROCESS  # the processes of the run
    embedded: EmbeddedImages | None = None  # if `dataset` holds the embeddings of a frozen backbone
    announce: Callable[[str], None] = print  # prints a message
    turns: Turns = ALONE  # with the other runs of this process

    @property
    def image_dataset(self) -> Dataset:
        """The dataset with the images that people see and networks are used on, even if the run reads embeddings."""
        return self.dataset if self.embedded is None else self.embedded.images

    @property
    def true_labels(self) -> Tensor:
        """True labels [N] of the pool, without the errors of a noisy oracle; for analysis only."""
        data = self.dataset
        return data.train_labels if data.true_labels is None else data.true_labels

    @property
    def has_unknown_labels(self) -> bool:
        """True if the label of an image is unknown, so that human annotators are asked."""
        return bool((self.true_labels == UNLABELED).any())

    def with_class_names(self, class_names: tuple[str, ...]) -> "Setup":
        """Returns a copy with the class names known so far; the same setup if there are no new ones."""
        if len(class_names) <= len(self.dataset.class_names):
            return self
        dataset = self.dataset._replace(class_names=class_names)
        return self._replace(dataset=dataset, build=partial(self.build, classes=len(class_names)))

    def with_turns(self, turns: Turns) -> "Setup":
        """Returns a copy that takes turns with other runs: they overlap on a GPU, where streams in a step cost time."""
        if turns.runs == 1:
            return self._replace(turns=turns)
        return self._replace(turns=turns, acceleration=self.acceleration._replace(overlap=False))

    @property
    def num_weak_views(self) -> int:
        """The number of weak views per unlabeled image that the SSL method takes."""
        return int(self._ssl_attribute("views", 1))

    @property
    def teacher_decay(self) -> float | None:
        """The decay of the teacher's averaged weights in joint training; None without a teacher."""
        decay: float | None = self._ssl_attribute("teacher_decay", None)
        return decay

    def _ssl_attribute(self, name: str, default: Any) -> Any:
        return getattr(self.ssl.func if isinstance(self.ssl, partial) else self.ssl, name, default)

    def schedule(self, has_module: bool) -> Schedule:
        """Returns the schedule of the run, with or without a loss prediction module."""
        return Schedule(self.budget.cycles, self.training, has_module, self.needs.members)

    def autocast(self) -> AbstractContextManager[None]:
        """Returns the autocast context for forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)
