"""Reference nets of the papers, one file a family; load.py finds yours, torchvision's and timm's."""

from compress_aug.models.alexnet import AlexNet, alexnet
from compress_aug.models.exchange import fresh_model, replay
from compress_aug.models.load import ModelSpec, check_fits, load_model, model_names
from compress_aug.models.mobilenet import mobilenet_v2
from compress_aug.models.preresnet import PreActivationNet, preresnet, wrn
from compress_aug.models.pyramidnet import PyramidNet, pyramidnet
from compress_aug.models.resnet import (
    ResNet,
    StagedResNet,
    resnet8,
    resnet14,
    resnet18,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
)
from compress_aug.models.shufflenet import shufflenet_v2

__all__ = [
    "AlexNet",
    "ModelSpec",
    "PreActivationNet",
    "PyramidNet",
    "ResNet",
    "StagedResNet",
    "alexnet",
    "check_fits",
    "fresh_model",
    "load_model",
    "mobilenet_v2",
    "model_names",
    "preresnet",
    "pyramidnet",
    "replay",
    "resnet8",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "shufflenet_v2",
    "wrn",
]
