"""What the loss prediction module learns from unlabeled images: a pseudo-label from the weak view."""

from torch import Tensor
from torch.nn.functional import one_hot

from sslpl.types import PseudoLabel, Share


def none() -> None:
    """No unlabeled term: the fine-tune sees labeled images alone (SCAL)."""


def pseudo_label_soft(weak_logits: Tensor, threshold: Share = 0.9) -> PseudoLabel:
    """The class probabilities, if the highest reaches the threshold (SSLPM's published code)."""
    probabilities = weak_logits.float().softmax(dim=1)
    return PseudoLabel(probabilities, (probabilities.amax(dim=1) >= threshold).float())


def pseudo_label_hard(weak_logits: Tensor, threshold: Share = 0.9) -> PseudoLabel:
    """The most likely class, if its probability reaches the threshold (SSLPM's figure; FixMatch)."""
    soft, weight = pseudo_label_soft(weak_logits, threshold)
    return PseudoLabel(one_hot(soft.argmax(dim=1), soft.shape[1]).float(), weight)


def confident(weight: Tensor) -> Tensor:
    """Rows that count, in order, the last dropped when their number is odd (SSLPM's code)."""
    rows = weight.nonzero().flatten()
    return rows[: len(rows) // 2 * 2]
