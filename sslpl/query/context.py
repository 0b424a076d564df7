"""The context that a query strategy receives, and the marks by which it declares its needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from sslpl.types import Images, Predictions

Weights = dict[str, Tensor]
Predictor = Callable[[Weights | None, Tensor], Predictions]  # weights (None: the current ones), pool indices


class Needs(NamedTuple):
    """What a strategy needs from the training, the data and the machine."""

    module: bool = False  # a loss prediction module
    previous: bool = False  # the backbone of the previous cycle
    snapshots: int = 0  # the number of snapshots of the current training
    oracle: bool = False  # the hidden labels, for a baseline only
    clusters: bool = False  # memory for the pairwise distances of budget.candidates
    subset: bool = False  # a limit on the unlabeled images considered, in a large pool
    faiss: bool = False  # the package faiss, in a large pool
    members: int = 0  # the number of separately trained networks; 0: the backbone alone


def needs_module(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that requires a loss prediction module."""
    function.needs_module = True  # type: ignore[attr-defined]
    return function


def needs_previous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that requires the backbone of the previous cycle."""
    function.needs_previous = True  # type: ignore[attr-defined]
    return function


def needs_clusters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a selector or strategy that holds the pairwise distances of all candidates in memory."""
    function.needs_clusters = True  # type: ignore[attr-defined]
    return function


def needs_subset(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that is too slow or takes too much memory for a large pool without its argument `subset`."""
    function.needs_subset = True  # type: ignore[attr-defined]
    return function


def needs_faiss(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that requires faiss for a large pool."""
    function.needs_faiss = True  # type: ignore[attr-defined]
    return function


def needs_images(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that reads images, and cannot work on embeddings."""
    function.needs_images = True  # type: ignore[attr-defined]
    return function


def works_unlabeled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a strategy that can also select the initial images, before any label and any training of the head."""
    function.works_unlabeled = True  # type: ignore[attr-defined]
    return function


def needs(strategy: Any) -> Needs:
    """Returns the needs of a strategy and of those that it combines, from their marks and their bound arguments."""
    if not isinstance(strategy, partial):
        marks = ("module", "previous", "clusters", "subset", "faiss")
        return Needs(**{mark: getattr(strategy, f"needs_{mark}", False) for mark in marks})
    marked, arguments = needs(strategy.func), strategy.keywords
    parts = [
        part for value in arguments.values() for part in (value.values() if isinstance(value, Mapping) else [value])
    ]
    all_needs = [marked, *(needs(part) for part in parts if callable(part))]
    return Needs(
        any(need.module for need in all_needs),
        any(need.previous for need in all_needs),
        max([int(arguments.get("snapshots", 0)), *(need.snapshots for need in all_needs)]),
        any([arguments.get("oracle_baseline") is True, *(need.oracle for need in all_needs)]),
        any(need.clusters for need in all_needs),
        any(need.subset for need in all_needs),
        any(need.faiss for need in all_needs),
        max([int(arguments.get("members", 0)), *(need.members for need in all_needs)]),
    )


@dataclass(frozen=True, kw_only=True)
class Context:
    """Implements `QueryContext`."""

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
    augment: Callable[[Tensor, Generator], Tensor]  # random weak views, normalized
    predict: Predictor
    cycle: int = 0
    cycles: int = 1
    precomputed: Predictions | None = None  # of all unlabeled images, ascending; None: computed on first access
    previous_weights: Weights | None = None
    snapshots: Sequence[Weights] = ()  # of the training, or of the members of an ensemble
    truth: Tensor | None = None

    def restricted_to(self, index: Tensor) -> "Context":
        """Returns a copy of the context with only these unlabeled images, ascending, and what is computed already."""
        restricted = replace(self, unlabeled=index, precomputed=vars(self).get("predictions", self.precomputed))
        if "labeled_predictions" in vars(self):
            vars(restricted)["labeled_predictions"] = self.labeled_predictions
        return restricted

    def normalized_images(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the normalized images [B, C, H, W], in float32, of each index tensor."""
        return map(self.normalize, self.images.batches(batches))

    def augmented_images(self, batches: Sequence[Tensor], views: int, rng: Generator) -> Iterator[Iterator[Tensor]]:
        """Yields, for each index tensor, its normalized images and then `views` random weak views of them."""
        for images in self.images.batches(batches):
            yield chain([self.normalize(images)], (self.augment(images, rng) for _ in range(views)))

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions for the unlabeled images."""
        if self.precomputed is None:
            return self.predict(None, self.unlabeled)
        if len(self.precomputed.index) == len(self.unlabeled):
            return self.precomputed
        return take_rows(self.precomputed, torch.searchsorted(self.precomputed.index, self.unlabeled))

    @cached_property
    def labeled_predictions(self) -> Predictions:
        """Predictions for the labeled images."""
        return self.predict(None, self.labeled)

    @cached_property
    def previous(self) -> Predictions:
        """Predictions for the unlabeled images by the previous cycle's backbone (cycle 0: by the initial weights)."""
        if self.previous_weights is None:
            raise RuntimeError("the backbone of the previous cycle is kept only for strategies marked needs_previous")
        return self.predict(self.previous_weights, self.unlabeled)

    @cached_property
    def committee(self) -> tuple[Predictions, ...]:
        """Predictions for the unlabeled images by each snapshot of this cycle's training, or member of its ensemble."""
        return tuple(self.predict(weights, self.unlabeled) for weights in self.snapshots)

    def hidden_labels(self) -> Tensor:
        """Returns the hidden classes [U] of the unlabeled images; PermissionError without `oracle_baseline: true`."""
        if self.truth is None:
            raise PermissionError("hidden labels are available only to a strategy with query.oracle_baseline=true")
        return self.truth[self.unlabeled]


def take_rows(predictions: Predictions, rows: Tensor) -> Predictions:
    """Returns the predictions at these rows."""
    device_rows = rows.to(predictions.logits.device)
    losses = predictions.predicted_loss
    return Predictions(
        predictions.index[rows],
        predictions.logits[device_rows],
        predictions.embedding[device_rows],
        losses[device_rows] if losses is not None else None,
    )
