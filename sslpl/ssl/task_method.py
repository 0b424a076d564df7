"""What all semi-supervised methods of the joint training have: options, and inputs and result of their losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Generator, Tensor, nn

from sslpl.types import Count, PositiveOrZero, Share, ShareBelowOne

ViewKind = Literal["weak", "strong"]


class TaskData(NamedTuple):
    """What the loss of a joint training's unlabeled images depends on before its first step."""

    labels: Tensor  # [L] int64, of the images to train on, in ascending order of their positions
    frequency: Tensor  # [classes], class shares of the labeled images
    num_unlabeled: int
    width: int  # of the backbone's embedding
    batch_size: int  # of a full labeled batch
    unlabeled_batch_size: int


class Outputs(NamedTuple):
    """The outputs for the images of all processes, in float32, with the gradient of this process's own."""

    logits: Tensor  # [N, classes]
    projected: Tensor | None = None  # [N, P], of the criterion's head, if it has one


class LabeledOutputs(NamedTuple):
    """The outputs for the labeled batch, without gradient, and its labels."""

    outputs: Outputs
    labels: Tensor  # [B] int64
    index: Tensor  # type: ignore[assignment]  # [B] int64, positions in `TaskData.labels`


class TaskOutputs(NamedTuple):
    """What the loss of a step is computed from."""

    views: tuple[Outputs, ...]  # of the unlabeled images; pseudo-labels from the first take no gradient
    index: Tensor  # type: ignore[assignment]  # [U], positions of the images among the unlabeled ones
    step: int = 0  # of the joint training, from 0
    steps: int = 1
    labeled: LabeledOutputs | None = None  # for a criterion that reads it
    images: tuple[Tensor, ...] = ()  # the labeled views and all unlabeled ones, for a criterion that reads them
    forward: Callable[[Tensor], Outputs] | None = None  # forwards more images of all processes
    rng: Generator | None = None  # of this step

    @property
    def progress(self) -> float:
        """The share of the training's steps that are done, in 0..1."""
        return self.step / self.steps


class TaskLoss(NamedTuple):
    """The loss terms of a step, and its pseudo-labels."""

    pseudo: Tensor  # [], mean over all unlabeled images, including those of weight 0
    auxiliary: Tensor  # [], further terms, weighted
    target: Tensor  # [U, classes]
    weight: Tensor  # [U]
    supervised: Tensor | None = None  # [], replaces the mean cross-entropy of the labeled images


class Criterion(nn.Module):
    """A function from `TaskOutputs` to a `TaskLoss`; its state during a training is in parameters and buffers."""

    reads_labeled = False  # uses `TaskOutputs.labeled`
    reads_images = False  # uses `TaskOutputs.images` and `TaskOutputs.forward`

    def __init__(self, head: nn.Module | None = None) -> None:
        """Registers a head from embeddings [N, D] to `Outputs.projected`, which is trained with the backbone."""
        super().__init__()
        self.head = head


@dataclass(frozen=True, kw_only=True)
class TaskMethod:
    """The options that every method of semi-supervised joint training has."""

    ratio: Count = 7  # unlabeled images per step over `training.batch_size`
    weight: PositiveOrZero = 1.0  # of the unlabeled term
    ramp_up: Share = 0.0  # share of the steps over which the weight grows from 0, linearly
    average: ShareBelowOne = 0.999  # decay of the averaged weights used for evaluation and queries

    @property
    def views(self) -> tuple[ViewKind, ...]:
        """The views of an unlabeled image, of which the first is pseudo-labeled; each is drawn independently."""
        return ("weak", "strong")

    @property
    def forwarded(self) -> slice:
        """The views that pass the backbone together with the labeled images."""
        return slice(None)

    @property
    def has_teacher(self) -> bool:
        """True if the averaged weights, instead of the backbone's, see the first view."""
        return False

    @property
    def num_forward_views(self) -> int:
        """The number of views per unlabeled image that pass the backbone in a step of training."""
        return len(self.views[self.forwarded])

    def ramp_at(self, step: int, steps: int) -> float:
        """Returns the factor on the weight of the unlabeled term in step `step` (from 0) of `steps`."""
        return min(1.0, step / (self.ramp_up * steps)) if self.ramp_up else 1.0

    def weight_at(self, step: int, steps: int) -> float:
        """Returns the weight of the unlabeled term in step `step` (from 0) of `steps`."""
        return self.weight * self.ramp_at(step, steps)

    def criterion(self, data: TaskData) -> Criterion:
        """Returns the loss of a joint training, in its initial state."""
        raise NotImplementedError
