"""Semi-supervised learning: pseudo-label rules, and the methods of semi-supervised training of the backbone."""

from sslpl.ssl.adamatch import AdaMatch
from sslpl.ssl.adaptive import FlexMatch, FreeMatch, SoftMatch
from sslpl.ssl.backbone_loss import TaskSSL, no_task_ssl
from sslpl.ssl.comatch import CoMatch
from sslpl.ssl.dash import Dash
from sslpl.ssl.remixmatch import ReMixMatch
from sslpl.ssl.rules import Consistency, LabelGuessing, MeanTeacher, no_ssl, pseudo_label_hard, pseudo_label_soft, uda
from sslpl.ssl.simmatch import SimMatch

__all__ = [
    "AdaMatch",
    "CoMatch",
    "Consistency",
    "Dash",
    "FlexMatch",
    "FreeMatch",
    "LabelGuessing",
    "MeanTeacher",
    "ReMixMatch",
    "SimMatch",
    "SoftMatch",
    "TaskSSL",
    "no_ssl",
    "no_task_ssl",
    "pseudo_label_hard",
    "pseudo_label_soft",
    "uda",
]
