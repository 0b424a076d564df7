"""What a query strategy sees of a run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslpl.types import Images, Predictions

Weights = dict[str, Tensor]
Predictor = Callable[[Weights | None, Tensor], Predictions]  # weights (None: the current ones), positions


class Needs(NamedTuple):
    """What a strategy wants kept for it during the training, or is allowed to see."""

    module: bool = False  # a loss prediction module
    previous: bool = False  # the backbone of the cycle before
    snapshots: int = 0  # how many backbones of the training under way
    oracle: bool = False  # the hidden labels: a baseline that no one could run
    clusters: bool = False  # the pairs of budget.candidates in memory
    subset: bool = False  # a limit to the unlabeled images that it looks at, in a large pool
    faiss: bool = False  # in a large pool


def needs_module(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that cannot work without a loss prediction module."""
    function.needs_module = True  # type: ignore[attr-defined]
    return function


def needs_previous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that compares with the backbone of the cycle before."""
    function.needs_previous = True  # type: ignore[attr-defined]
    return function


def needs_clusters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a selector or strategy that holds the distances of all pairs of the candidates."""
    function.needs_clusters = True  # type: ignore[attr-defined]
    return function


def needs_subset(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that a large pool would take too long or too much memory, without its argument `subset`."""
    function.needs_subset = True  # type: ignore[attr-defined]
    return function


def needs_faiss(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that chooses from a large pool with faiss."""
    function.needs_faiss = True  # type: ignore[attr-defined]
    return function


def works_unlabeled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that can choose the first images too, when none is labeled and no head has learned anything."""
    function.works_unlabeled = True  # type: ignore[attr-defined]
    return function


def needs(strategy: Any) -> Needs:
    """What a strategy and the scorers and selectors inside of it need: marks of functions, values of arguments."""
    if not isinstance(strategy, partial):
        marks = ("module", "previous", "clusters", "subset", "faiss")
        return Needs(**{mark: getattr(strategy, f"needs_{mark}", False) for mark in marks})
    own, arguments = needs(strategy.func), strategy.keywords
    inner = [own, *(needs(value) for value in arguments.values() if callable(value))]
    return Needs(
        any(part.module for part in inner),
        any(part.previous for part in inner),
        max([int(arguments.get("snapshots", 0)), *(part.snapshots for part in inner)]),
        any([arguments.get("oracle_baseline") is True, *(part.oracle for part in inner)]),
        any(part.clusters for part in inner),
        any(part.subset for part in inner),
        any(part.faiss for part in inner),
    )


@dataclass(frozen=True, kw_only=True)
class Context:
    """See `QueryContext`."""

    unlabeled: Tensor
    labeled: Tensor
    labels: Tensor
    candidates: int
    num_classes: int
    device: torch.device
    backbone: nn.Module
    module: nn.Module | None
    images: Images
    normalize: Callable[[Tensor], Tensor]
    predict: Predictor
    cycle: int = 0
    known: Predictions | None = None  # of all unlabeled images, ascending, if they have been computed already
    previous_weights: Weights | None = None
    snapshots: Sequence[Weights] = ()
    truth: Tensor | None = None

    def restricted_to(self, index: Tensor) -> "Context":
        """The same with fewer unlabeled images, ascending."""
        return replace(self, unlabeled=index)

    def normalized_images(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The normalized images at each of the positions in turn, [B, C, H, W] float32."""
        return map(self.normalize, self.images.batches(batches))

    @cached_property
    def predictions(self) -> Predictions:
        """Of the unlabeled images."""
        if self.known is None:
            return self.predict(None, self.unlabeled)
        if len(self.known.index) == len(self.unlabeled):
            return self.known
        return take_rows(self.known, torch.searchsorted(self.known.index, self.unlabeled))

    @cached_property
    def labeled_predictions(self) -> Predictions:
        """Of the labeled images."""
        return self.predict(None, self.labeled)

    @cached_property
    def previous(self) -> Predictions:
        """Of the unlabeled images, by the backbone of the cycle before (in the first cycle: by its first weights)."""
        if self.previous_weights is None:
            raise RuntimeError("the backbone of the cycle before is kept only for strategies marked needs_previous")
        return self.predict(self.previous_weights, self.unlabeled)

    @cached_property
    def committee(self) -> tuple[Predictions, ...]:
        """Of the unlabeled images, by each snapshot of this cycle's training."""
        return tuple(self.predict(weights, self.unlabeled) for weights in self.snapshots)

    def hidden_labels(self) -> Tensor:
        """The hidden classes [U] of the unlabeled images; PermissionError without `oracle_baseline: true`."""
        if self.truth is None:
            raise PermissionError("hidden labels are shown to a strategy with query.oracle_baseline=true alone")
        return self.truth[self.unlabeled]


def take_rows(predictions: Predictions, at: Tensor) -> Predictions:
    """The predictions at some rows."""
    there = at.to(predictions.logits.device)
    losses = predictions.predicted_loss
    return Predictions(
        predictions.index[at],
        predictions.logits[there],
        predictions.embedding[there],
        losses[there] if losses is not None else None,
    )
