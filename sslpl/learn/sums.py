"""Running sums of a phase: one tensor on the device, read as named numbers at the end of an epoch."""

import math
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", Tensor, float)


class JointSums(NamedTuple, Generic[T]):
    """Sums over the images of an epoch of joint training, in the order of `State.sums`."""

    loss: T  # cross-entropy
    ranking_loss: T
    correct: T
    labeled_images: T
    unlabeled_loss: T
    pseudo_label_weight: T
    correct_weight: T  # NaN if the label of an image is unknown
    unlabeled_images: T


class FinetuneSums(NamedTuple, Generic[T]):
    """Sums of a fine-tune, in the order of `State.sums`: losses of an epoch, pseudo-labels of all epochs."""

    ranking_loss: T
    pseudo_ranking_loss: T
    steps: T
    pseudo_label_weight: T
    correct_weight: T  # NaN if the label of an image is unknown
    unlabeled_images: T


# The number of sums that are reset in each epoch of a fine-tune.
EPOCH_SUMS = FinetuneSums._fields.index("pseudo_label_weight")


def initial_sums(device: torch.device, resumed: Tensor | None, count: int) -> Tensor:
    """Returns zeros [count], or the sums of a checkpoint, on the device."""
    return torch.zeros(count, device=device) if resumed is None else resumed.to(device)


def joint_means(sums: JointSums[float]) -> dict[str, float]:
    """Returns means over an epoch of joint training, by the metric names of the tracker."""
    images, unlabeled = sums.labeled_images, sums.unlabeled_images
    means = {
        "train/loss": sums.loss / images,
        "train/ranking_loss": sums.ranking_loss / images,
        "train/accuracy": sums.correct / images,
    }
    if unlabeled:
        means["train/unlabeled_loss"] = sums.unlabeled_loss / unlabeled
        means["train/pseudo_label_rate"] = sums.pseudo_label_weight / unlabeled
    if sums.pseudo_label_weight and not math.isnan(sums.correct_weight):
        means["train/pseudo_label_accuracy"] = sums.correct_weight / sums.pseudo_label_weight
    return means


def finetune_means(sums: FinetuneSums[float]) -> dict[str, float]:
    """Returns mean losses over an epoch of the fine-tune, by the metric names of the tracker."""
    losses = {"ranking_loss": sums.ranking_loss, "pseudo_ranking_loss": sums.pseudo_ranking_loss}
    return {f"finetune/{name}": value / sums.steps for name, value in losses.items()}


def pseudo_label_quality(sums: FinetuneSums[float]) -> dict[str, float | None]:
    """Returns the mean weight of the pseudo-labels (with a threshold: their rate), and the correct share of the weight.

    None if there are no pseudo-labels, or if the label of an image is unknown.
    """
    weight, unlabeled = sums.pseudo_label_weight, sums.unlabeled_images
    known = weight and not math.isnan(sums.correct_weight)
    return {
        "pseudo_label_rate": weight / unlabeled if unlabeled else None,
        "pseudo_label_accuracy": sums.correct_weight / weight if known else None,
    }
