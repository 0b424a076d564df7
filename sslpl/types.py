"""The words that the modules share: named tuples, protocols and the ranges of numbers, without logic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

# Ranges of configured numbers: the command line is checked against them before anything is built.
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Amount = Annotated[
    Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(strict=True, gt=0, le=1)],
    Field(description="an int of at least 1 (images) or a float above 0 and at most 1 (a share of the pool)"),
]


class UserError(ValueError):
    """A mistake that its user can mend: its one line names the key, the value and what is allowed."""


class WaitingForLabels(Exception):
    """Labels are asked for that nobody has told yet; its one line says what to do."""


class InvalidLabels(UserError):
    """Labels that cannot be taken as they are: its arguments are lines, one for each thing to mend."""

    def __str__(self) -> str:
        return "\n".join(self.args)


class Features(NamedTuple):
    """What a backbone returns for a batch of B images."""

    logits: Tensor  # [B, classes]
    maps: tuple[Tensor, ...]  # one per stage: [B, channels, height, width]
    embedding: Tensor  # [B, D], the globally averaged last stage


class PseudoLabel(NamedTuple):
    """What the loss of a strongly augmented unlabeled image is measured against."""

    target: Tensor  # [B, classes], probabilities
    weight: Tensor  # [B], 0 leaves the image out


class Predictions(NamedTuple):
    """What the current model says of N images, without augmentation, in float32."""

    index: Tensor  # type: ignore[assignment]  # [N], positions in the pool
    logits: Tensor  # [N, classes]
    embedding: Tensor  # [N, D]
    predicted_loss: Tensor | None  # [N]; None without a loss prediction module


class Selection(NamedTuple):
    """What a query strategy chose to have labeled."""

    index: Tensor  # type: ignore[assignment]  # [n], positions in the pool
    score: Tensor  # [n], why; NaN where a strategy has no score


class Backbone(Protocol):
    """A network that returns `Features`; `channels` holds the channels of each of its stages."""

    channels: Sequence[int]

    def __call__(self, images: Tensor) -> Features: ...


class Images(Protocol):
    """A set of N images of one shape, delivered to the device in batches of uint8."""

    shape: tuple[int, int, int]  # channels, height, width

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Images": ...

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each index tensor in turn, [B, C, H, W] uint8 on the device."""
        ...


class Dataset(NamedTuple):
    """A pool to label and a test set, with what every run on them shares."""

    train: Images
    train_labels: Tensor  # [N] int64, hidden until an oracle reveals them; -1 where nobody has told yet
    test: Images
    test_labels: Tensor  # [M] int64
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    flip: bool  # whether a mirrored image keeps its class
    cutout: int  # side in pixels of the strong augmentation's gray square; 0: none
    padding: int  # black pixels around an image before its random crop
    true_labels: Tensor | None = None  # [N], for analysis alone, where an oracle errs; None: the train labels
    paths: tuple[str, ...] = ()  # [N] of the pool's image files, as their labeler knows them; empty: no files


class QueryContext(Protocol):
    """All that a query strategy may see: hidden labels are out of its reach by construction."""

    @property
    def unlabeled(self) -> Tensor: ...  # [U], positions in the pool, ascending, on the CPU

    @property
    def labeled(self) -> Tensor: ...  # [L], positions in the pool, as labeled, without the held-out ones, on the CPU

    @property
    def labels(self) -> Tensor: ...  # [L], their revealed classes, on the CPU

    @property
    def cycle(self) -> int: ...  # from 0

    @property
    def candidates(self) -> int: ...  # how many images a clustering selector may look at

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...  # where the predictions are and networks run

    @property
    def backbone(self) -> nn.Module: ...  # not to be changed; a copy may be

    @property
    def module(self) -> nn.Module | None: ...

    @property
    def predictions(self) -> Predictions: ...  # of the unlabeled images; like the following, made when first asked for

    @property
    def labeled_predictions(self) -> Predictions: ...  # of the labeled images

    @property
    def previous(self) -> Predictions: ...  # of the unlabeled, by the last cycle's backbone: mark `needs_previous`

    @property
    def committee(self) -> Sequence[Predictions]: ...  # of the unlabeled, by snapshots: take an argument `snapshots`

    def normalized_images(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The normalized images at each of the positions in turn, [B, C, H, W] float32 on the device."""
        ...

    def restricted_to(self, index: Tensor) -> "QueryContext":
        """The same with fewer unlabeled images, ascending."""
        ...

    def hidden_labels(self) -> Tensor:
        """The hidden classes [U] of the unlabeled images; PermissionError without `oracle_baseline: true`."""
        ...


class QueryStrategy(Protocol):
    """Chooses n distinct unlabeled images; every draw comes from the CPU generator `rng`."""

    def __call__(self, context: QueryContext, n: int, rng: Generator) -> Selection: ...


class LabelRequest(NamedTuple):
    """What an oracle is asked: the classes of n images."""

    dataset: Dataset
    folder: Path  # of the run
    cycle: int  # the first that trains on them
    selection: Selection
    reason: str  # why these
    class_names: tuple[str, ...]  # known so far
    probabilities: Callable[[], Tensor] | None  # -> [n, classes], of the current backbone; None: nothing is trained yet


class LabelAnswer(NamedTuple):
    """What an oracle told of a request."""

    label: Tensor  # [n] int64; -1 for an image that goes back to the pool; at least one is not
    class_names: tuple[str, ...]  # those of the request, then new ones
    source: str = ""  # where the labels were read, and
    time: str = ""  # when, in UTC


class Oracle(Protocol):
    """Tells the classes of images."""

    def prepare(self, dataset: Dataset) -> Dataset:
        """The dataset as a run with this oracle sees it; UserError if the two do not fit."""
        ...

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """The labels; WaitingForLabels if there are none yet, InvalidLabels if they cannot be accepted."""
        ...


class RunInfo(NamedTuple):
    """What a tracker needs to know of a run before its first number."""

    id: str  # of this run in this folder: the config's id and the folder's own random part
    name: str
    group: str  # the label: the method and what differs from its preset
    folder: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    dataset: str = ""  # the option of the group
    setting: str = ""  # 12 hexadecimal digits over all of the config but the seed
    config_id: str = ""  # the same over all of it: shared by runs of one config in several folders


class Tracker(Protocol):
    """Receives the numbers of a run; it never stops, slows or prompts one."""

    def start(self, run: RunInfo) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of one step; steps only grow, and one that was logged before a resume is dropped."""
        ...

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None: ...


class Step(NamedTuple):
    """What a phase reports after each of its steps; the state it leaves can be saved there."""

    images: int
    metrics: dict[str, float] | None = None  # at the end of an epoch, for the tracker
