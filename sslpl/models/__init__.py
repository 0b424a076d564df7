"""Backbones and the loss prediction module, as the configs name them."""

from sslpl.models.backbone import small_cnn
from sslpl.models.fast_cnn import fast_cnn
from sslpl.models.heads import linear, mlp
from sslpl.models.libraries import timm, torchvision
from sslpl.models.loss_prediction import LossPredictionModule, no_module
from sslpl.models.resnet import resnet18, resnet34, resnet50
from sslpl.models.wide_resnet import wide_resnet28_2, wide_resnet28_10

__all__ = [
    "LossPredictionModule",
    "fast_cnn",
    "linear",
    "mlp",
    "no_module",
    "resnet18",
    "resnet34",
    "resnet50",
    "small_cnn",
    "timm",
    "torchvision",
    "wide_resnet28_2",
    "wide_resnet28_10",
]
