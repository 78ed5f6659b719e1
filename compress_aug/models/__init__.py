"""Reference nets of the papers, one file a family; load.py finds yours, torchvision's and timm's."""

from compress_aug.models.load import ModelSpec, check_fits, load_model, model_names
from compress_aug.models.mobilenet import mobilenet_v2
from compress_aug.models.resnet import ResNet, resnet8, resnet14, resnet20, resnet32, resnet56, resnet110
from compress_aug.models.shufflenet import shufflenet_v2

__all__ = [
    "ModelSpec",
    "ResNet",
    "check_fits",
    "load_model",
    "mobilenet_v2",
    "model_names",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "shufflenet_v2",
]
