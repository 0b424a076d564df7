"""Metrics of predictions: accuracy, F1, calibration, and the rank correlation of predicted and true loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl.calibration import calibration_error
from sslpl.types import UNLABELED, Predictions


def true_losses(predictions: Predictions, labels: Tensor) -> Tensor:
    """Returns the cross-entropy [N] of predictions against their labels, in nats, on the CPU."""
    return cross_entropy(predictions.logits, labels.to(predictions.logits.device), reduction="none").cpu()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Returns the share of images whose most likely class is correct."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def macro_f1(guess: Tensor, labels: Tensor) -> float:
    """Returns the mean F1 of the classes among guesses and labels, as scikit-learn's f1_score(average="macro")."""
    sizes = torch.bincount(torch.cat([guess, labels])).double()  # per class: true positives count twice
    correct = torch.bincount(guess[guess == labels], minlength=len(sizes)).double()
    present = sizes > 0
    return (2 * correct[present] / sizes[present]).mean().item()


def test_metrics(predictions: Predictions, labels: Tensor) -> dict[str, float | int | None]:
    """Returns accuracy, macro F1, negative log-likelihood (nats) and expected calibration error on the test set."""
    logits = predictions.logits.cpu()
    guess = logits.argmax(dim=1)
    return {
        "test_accuracy": accuracy(logits, labels),
        "test_macro_f1": macro_f1(guess, labels),
        "test_nll": cross_entropy(logits.double(), labels).item(),
        "test_ece": calibration_error(logits, labels),
    }


def loss_rank_correlation(predictions: Predictions, labels: Tensor) -> float | None:
    """Returns the Spearman correlation of predicted and true loss; None if undefined or if a label is unknown (-1).

    Images of no class (-2) have no true loss and are left out. For analysis only.
    """
    has_class = labels >= 0
    if predictions.predicted_loss is None or int(has_class.sum()) < 2 or bool((labels == UNLABELED).any()):
        return None
    predicted = predictions.predicted_loss.cpu()[has_class]
    true = true_losses(predictions, labels.clamp(min=0))[has_class]
    if any(bool((values == values[0]).all()) for values in (predicted, true)):  # undefined, and scipy would warn
        return None
    from scipy.stats import spearmanr  # imported late: it takes a second

    correlation = float(spearmanr(predicted.numpy(), true.numpy())[0])
    return None if correlation != correlation else correlation
