"""Networks. They know nothing of measuring."""

from condexp.models.init import Init, initialise
from condexp.models.linear import build_linear
from condexp.models.mlp import Activation, NormPosition, build_mlp
from condexp.models.norm import BatchCenter, BatchScale, Norm, make_norm
from condexp.models.resnet import Shortcut, build_resnet

__all__ = [
    "Activation",
    "BatchCenter",
    "BatchScale",
    "Init",
    "Norm",
    "NormPosition",
    "Shortcut",
    "build_linear",
    "build_mlp",
    "build_resnet",
    "initialise",
    "make_norm",
]
