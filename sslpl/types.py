"""Types shared by all modules: named tuples, protocols and numeric ranges, without logic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

# Ranges of config values: checked before anything is built.
Count = Annotated[int, Field(strict=True, ge=1)]
Several = Annotated[int, Field(strict=True, ge=2)]
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

UNLABELED, REJECTED = -1, -2  # in place of a class: back to the pool; of no class, out of the pool


class UserError(ValueError):
    """A mistake that the user can fix: the message, one line, names the key, the value and what is allowed."""


class WaitingForLabels(Exception):
    """Raised when requested labels are not available yet; the message, one line, says what to do."""


class InvalidLabels(UserError):
    """Raised when labels are rejected; the arguments are lines, one for each problem to fix."""

    def __str__(self) -> str:
        return "\n".join(self.args)


class Features(NamedTuple):
    """What a backbone returns for a batch of B images."""

    logits: Tensor  # [B, classes]
    maps: tuple[Tensor, ...]  # one per stage: [B, channels, height, width]
    embedding: Tensor  # [B, D], the globally averaged last stage


class PseudoLabel(NamedTuple):
    """The pseudo-labels of a batch of unlabeled images, and their weights in the loss."""

    target: Tensor  # [B, classes], probabilities
    weight: Tensor  # [B], 0 ignores the image


class Predictions(NamedTuple):
    """The outputs of the current networks for N images, without augmentation, in float32."""

    index: Tensor  # type: ignore[assignment]  # [N], positions in the pool
    logits: Tensor  # [N, classes]
    embedding: Tensor  # [N, D]
    predicted_loss: Tensor | None  # [N]; None without a loss prediction module


class Selection(NamedTuple):
    """The images that a query strategy selected for labeling."""

    index: Tensor  # type: ignore[assignment]  # [n], positions in the pool
    score: Tensor  # [n], query scores; NaN if the strategy has none


class Backbone(Protocol):
    """A network that returns `Features`; `channels` holds the number of channels of each stage."""

    channels: Sequence[int]

    def __call__(self, images: Tensor) -> Features: ...


class Images(Protocol):
    """A set of N images of equal shape, loaded to the device in batches of uint8."""

    shape: tuple[int, int, int]  # channels, height, width

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Images": ...

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each index tensor, [B, C, H, W] uint8 on the device."""
        ...


class Dataset(NamedTuple):
    """The pool and the test set, with their classes, normalization and augmentation settings."""

    train: Images
    train_labels: Tensor  # [N] int64, hidden until an oracle reveals them; -1 if unknown, -2 if of no class
    test: Images
    test_labels: Tensor  # [M] int64
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    flip: bool  # whether horizontal flips preserve the class
    cutout: int  # side in pixels of the gray square in strong augmentation; 0: none
    padding: int  # black pixels around an image before its random crop
    true_labels: Tensor | None = None  # [N], with a noisy oracle, for analysis only; None: the train labels
    paths: tuple[str, ...] = ()  # [N], image files of the pool, as annotators see them; empty: no files
    files: tuple[str, ...] = ()  # [N], where these files are; empty: unknown


class QueryContext(Protocol):
    """Everything that a query strategy can access; hidden labels are inaccessible by construction."""

    @property
    def unlabeled(self) -> Tensor: ...  # [U], positions in the pool, ascending, on the CPU

    @property
    def labeled(self) -> Tensor: ...  # [L], positions in the order of labeling, without held-out ones, on the CPU

    @property
    def labels(self) -> Tensor: ...  # [L], their revealed labels, on the CPU

    @property
    def cycle(self) -> int: ...  # from 0

    @property
    def cycles(self) -> int: ...  # of the run, of which the last has no query

    @property
    def candidates(self) -> int: ...  # maximum number of images for a clustering selector

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...  # of the predictions and networks

    @property
    def backbone(self) -> nn.Module: ...  # must not be changed; copy it to train it

    @property
    def module(self) -> nn.Module | None: ...

    @property
    def predictions(self) -> Predictions: ...  # of the unlabeled images; computed on first access, as are those below

    @property
    def labeled_predictions(self) -> Predictions: ...  # of the labeled images

    @property
    def previous(self) -> Predictions: ...  # of the unlabeled, by the previous cycle's backbone: set `needs_previous`

    @property
    def committee(
        self,
    ) -> Sequence[Predictions]: ...  # of the unlabeled, by each of `snapshots` or `members`, a parameter

    def normalized_images(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the normalized images of each batch of positions, [B, C, H, W] float32 on the device."""
        ...

    def augmented_images(self, batches: Sequence[Tensor], views: int, rng: Generator) -> Iterator[Iterator[Tensor]]:
        """Yields, for each batch of positions, its normalized images and then `views` random weak views of them."""
        ...

    def restricted_to(self, index: Tensor) -> "QueryContext":
        """Returns a context with only the unlabeled images at `index`, ascending."""
        ...

    def hidden_labels(self) -> Tensor:
        """Returns the hidden labels [U] of the unlabeled images; PermissionError without `oracle_baseline: true`."""
        ...


class QueryStrategy(Protocol):
    """Selects n distinct unlabeled images; all random numbers come from the CPU generator `rng`."""

    def __call__(self, context: QueryContext, n: int, rng: Generator) -> Selection: ...


class Annotations(NamedTuple):
    """Every answer of several annotators in a run so far, in the order in which they were given."""

    index: Tensor  # type: ignore[assignment]  # [A] int64, positions in the pool
    person: Tensor  # [A] int64, positions in `people`
    label: Tensor  # [A] int64; -2: of no class
    people: tuple[str, ...]


class LabelRequest(NamedTuple):
    """A request to an oracle for the labels of n images."""

    dataset: Dataset
    folder: Path  # of the run
    cycle: int  # the first cycle that trains on them
    selection: Selection
    reason: str  # how they were selected
    class_names: tuple[str, ...]  # known so far
    probabilities: Callable[[], Tensor] | None  # -> [n, classes], by the current backbone; None if untrained
    seed: int = 0  # of the run
    annotations: Annotations | None = None  # of earlier requests, if an image is asked about several times


class EarlierLabels(NamedTuple):
    """The labels of earlier batches as they are now: people may have changed some of them."""

    index: Tensor  # type: ignore[assignment]  # [m], positions in the pool
    label: Tensor  # [m] int64; -2: of no class


class LabelAnswer(NamedTuple):
    """The answer of an oracle to a request."""

    label: Tensor  # [n] int64; -1 returns an image to the pool, -2 (of no class) removes it from the pool
    class_names: tuple[str, ...]  # those of the request, then new ones
    source: str = ""  # where the labels were read from
    time: str = ""  # when they were read, UTC
    earlier: EarlierLabels | None = None
    annotations: Annotations | None = None  # if an image is asked about several times: all of them so far
    seconds: float | None = None  # that people have spent on all answers so far; None: not measured


class RunProgress(NamedTuple):
    """How far a run is, for the people who label for it."""

    phase: str
    cycle: int  # from 0
    cycles: int
    labeled: int
    seconds_left: float | None  # until the next batch, without the time of labeling; None if it is not known yet
    curve: tuple[tuple[int, float], ...]  # labels and test accuracy (0 to 1) of each cycle so far
    forecast: str = ""  # of the next batch and of the target


class Oracle(Protocol):
    """Reveals the labels of images, from a data set, files or human annotators.

    An oracle whose people label while the run waits has a further method `serve`, a context around the whole run (see
    `sslpl.oracle.browser`).
    """

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset as a run with this oracle sees it; UserError if they are incompatible."""
        ...

    def __call__(self, request: LabelRequest) -> LabelAnswer | None:
        """Returns the labels, or None a moment later if people are labeling: the run asks again.

        WaitingForLabels if they are not available yet and the run should end, InvalidLabels if they are rejected.
        """
        ...


class RunInfo(NamedTuple):
    """The description of a run for a tracker."""

    id: str  # of this run in this folder: the config's id and a random part of the folder
    name: str
    group: str  # the method and its differences from the preset
    folder: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    dataset: str = ""  # option of the config group `dataset`
    setting: str = ""  # 12 hexadecimal digits, a hash of the config without the seed
    config_id: str = ""  # a hash of the whole config, equal for its runs in different folders


class Tracker(Protocol):
    """Receives the metrics of a run; it must never stop, slow down or prompt."""

    def start(self, run: RunInfo) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step; steps increase, and a step logged before a resume is dropped."""
        ...

    def finish(self, exit_code: int, summary: Mapping[str, float], files: Sequence[Path]) -> None: ...


class Step(NamedTuple):
    """The report of a phase after each step, when the state can be saved."""

    images: int
    metrics: dict[str, float] | None = None  # at the end of an epoch, for the tracker
    waited: float = 0.0  # seconds of it in which people labeled
