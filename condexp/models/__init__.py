"""Networks. They know nothing of measuring."""

from condexp.models.block import Activation, NormPosition
from condexp.models.cnn import build_cnn
from condexp.models.imported import build_imported
from condexp.models.init import Init, initialise
from condexp.models.linear import build_linear
from condexp.models.mlp import build_mlp
from condexp.models.norm import BatchCenter, BatchScale, Norm, make_norm
from condexp.models.preresnet import build_preresnet
from condexp.models.residual import Shortcut
from condexp.models.resnet import build_resnet
from condexp.models.resnet_imagenet import build_resnet_imagenet
from condexp.models.torchvision_models import build_torchvision
from condexp.models.vgg import build_vgg

__all__ = [
    "Activation",
    "BatchCenter",
    "BatchScale",
    "Init",
    "Norm",
    "NormPosition",
    "Shortcut",
    "build_cnn",
    "build_imported",
    "build_linear",
    "build_mlp",
    "build_preresnet",
    "build_resnet",
    "build_resnet_imagenet",
    "build_torchvision",
    "build_vgg",
    "initialise",
    "make_norm",
]
