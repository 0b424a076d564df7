"""Scorers: how much each unlabeled image is worth a label, higher is more."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sslpl.types import Predictions


def needs_module(scorer: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a scorer or strategy that cannot work without a loss prediction module."""
    scorer.needs_module = True  # type: ignore[attr-defined]
    return scorer


def entropy(predictions: Predictions) -> Tensor:
    """Entropy [N] of the class probabilities, in nats (Settles 2009)."""
    log_probability = predictions.logits.double().log_softmax(dim=1)
    return -(log_probability.exp() * log_probability).sum(dim=1)


@needs_module
def predicted_loss(predictions: Predictions) -> Tensor:
    """Predicted loss [N] (Yoo and Kweon 2019)."""
    assert predictions.predicted_loss is not None
    return predictions.predicted_loss
