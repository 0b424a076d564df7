"""Semi-supervised learning: pseudo-label rules, and the unlabeled loss of the backbone."""

from sslpl.ssl.adaptive import FlexMatch, FreeMatch, SoftMatch
from sslpl.ssl.backbone_loss import TaskSSL, no_task_ssl
from sslpl.ssl.rules import Consistency, LabelGuessing, MeanTeacher, no_ssl, pseudo_label_hard, pseudo_label_soft, uda

__all__ = [
    "Consistency",
    "FlexMatch",
    "FreeMatch",
    "LabelGuessing",
    "MeanTeacher",
    "SoftMatch",
    "TaskSSL",
    "no_ssl",
    "no_task_ssl",
    "pseudo_label_hard",
    "pseudo_label_soft",
    "uda",
]
